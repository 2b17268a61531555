# The paper's box expansion: every side by a factor from U(1, 1.1).
_base_ = '../mal_vit-base-mae_8xb4-10e_coco.py'

train_pipeline = _base_.train_pipeline
train_pipeline[0].update(sampler='independent', margin=0.1)
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
