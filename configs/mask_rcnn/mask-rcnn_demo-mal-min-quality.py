# MAL's labels without the mask loss of the masks that are probably worst. Their boxes, which a
# person drew, are learned as ever.
_base_ = 'mask-rcnn_demo-mal-quality-weighted.py'

# 25 % of the 989 masks on the demo's training boxes are below this.
model = dict(
    roi_head=dict(mask_head=dict(min_quality=0.8, weighted=False)))
