# The stock Mask R-CNN for LVIS v1 on MAL's labels instead of human masks.
_base_ = 'mmdet::lvis/mask-rcnn_r50_fpn_sample1e-3_ms-1x_lvis-v1.py'

train_dataloader = dict(
    dataset=dict(dataset=dict(ann_file='annotations/lvis_v1_train_mal.json')))
