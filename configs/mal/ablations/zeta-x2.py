# Twice the colour bandwidth ζ of the base.
_base_ = '../mal_vit-base-mae_8xb4-10e_coco.py'

model = dict(crf_loss=dict(zeta=2 * _base_.model.crf_loss.zeta))
