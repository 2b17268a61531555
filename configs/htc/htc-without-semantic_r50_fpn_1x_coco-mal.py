# The stock HTC on MAL's labels instead of human masks.
_base_ = 'mmdet::htc/htc-without-semantic_r50_fpn_1x_coco.py'

train_dataloader = dict(
    dataset=dict(ann_file='annotations/instances_train2017_mal.json'))
