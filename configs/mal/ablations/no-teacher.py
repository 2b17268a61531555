# The CRF loss refines the probabilities of the student alone.
_base_ = '../mal_vit-base-mae_8xb4-10e_coco.py'

model = dict(crf_loss=dict(teacher_weight=0.0))
