# The stock PointRend on MAL's labels instead of human masks.
_base_ = 'mmdet::point_rend/point-rend_r50-caffe_fpn_ms-1x_coco.py'

train_dataloader = dict(
    dataset=dict(ann_file='annotations/instances_train2017_mal.json'))
