# The stock RTMDet-Ins on MAL's labels instead of human masks, as polygons: it ignores RLE.
_base_ = 'mmdet::rtmdet/rtmdet-ins_l_8xb32-300e_coco.py'

train_dataloader = dict(
    dataset=dict(ann_file='annotations/instances_train2017_mal-polygon.json'))
