# Outside the image a crop shows the opposite side, as in the released system.
_base_ = '../mal_vit-base-mae_8xb4-10e_coco.py'

train_pipeline = _base_.train_pipeline
train_pipeline[1].border = 'wrap'
test_pipeline = _base_.test_pipeline
test_pipeline[1].border = 'wrap'
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
test_dataloader = dict(dataset=dict(pipeline=test_pipeline))
