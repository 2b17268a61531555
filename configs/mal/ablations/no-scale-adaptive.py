# The pixel-wise head sees the map of the encoder at its own scale, for objects of all sizes.
_base_ = '../mal_vit-base-mae_8xb4-10e_coco.py'

model = dict(network=dict(decoder=dict(scale_adaptive=False)))
