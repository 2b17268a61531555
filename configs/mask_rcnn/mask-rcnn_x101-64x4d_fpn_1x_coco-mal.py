# The stock Mask R-CNN on MAL's labels instead of human masks.
_base_ = 'mmdet::mask_rcnn/mask-rcnn_x101-64x4d_fpn_1x_coco.py'

train_dataloader = dict(
    dataset=dict(ann_file='annotations/instances_train2017_mal.json'))
