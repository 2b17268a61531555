# Half the weight of the CRF loss.
_base_ = '../mal_vit-base-mae_8xb4-10e_coco.py'

model = dict(
    crf_loss=dict(loss_weight=0.5 * _base_.model.crf_loss.loss_weight))
