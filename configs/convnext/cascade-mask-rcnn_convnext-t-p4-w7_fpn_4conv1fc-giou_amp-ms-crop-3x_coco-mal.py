# The stock Cascade Mask R-CNN on MAL's labels instead of human masks.
_base_ = 'mmdet::convnext/cascade-mask-rcnn_convnext-t-p4-w7_fpn_4conv1fc-giou_amp-ms-crop-3x_coco.py'

train_dataloader = dict(
    dataset=dict(ann_file='annotations/instances_train2017_mal.json'))
