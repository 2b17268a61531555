# The stock SOLOv2 on MAL's labels instead of human masks.
_base_ = 'mmdet::solov2/solov2_x101-dcn_fpn_ms-3x_coco.py'

train_dataloader = dict(
    dataset=dict(ann_file='annotations/instances_train2017_mal.json'))
