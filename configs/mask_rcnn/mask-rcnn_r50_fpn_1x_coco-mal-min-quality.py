# MAL's labels without the mask loss of the masks that are probably worst. Their boxes, which a
# person drew, are learned as ever.
_base_ = 'mask-rcnn_r50_fpn_1x_coco-mal-quality-weighted.py'

# 24 % of 1283 masks on the training boxes of a small subset of COCO are below this. Choose it so
# that about the worst fifth of your own training labels is left out.
model = dict(
    roi_head=dict(mask_head=dict(min_quality=0.7, weighted=False)))
