# The demo's Mask R-CNN without its mask branch, on boxes alone: what masks do for boxes.
_base_ = '../mask_rcnn/mask-rcnn_demo-mal.py'

model = dict(type='FasterRCNN', roi_head=dict(mask_roi_extractor=None, mask_head=None))
train_pipeline = _base_.train_pipeline
train_pipeline[1].with_mask = False
train_dataloader = dict(dataset=dict(ann_file='boxes_train.json', pipeline=train_pipeline))
val_evaluator = dict(metric='bbox')
test_evaluator = val_evaluator
