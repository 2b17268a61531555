# Half the weight of the MIL loss.
_base_ = '../mal_vit-base-mae_8xb4-10e_coco.py'

model = dict(
    mil_loss=dict(loss_weight=0.5 * _base_.model.mil_loss.loss_weight))
