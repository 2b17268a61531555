# The stock CondInst on MAL's labels instead of human masks, as polygons: it ignores RLE.
_base_ = 'mmdet::condinst/condinst_r50_fpn_ms-poly-90k_coco_instance.py'

train_dataloader = dict(
    dataset=dict(ann_file='annotations/instances_train2017_mal-polygon.json'))
