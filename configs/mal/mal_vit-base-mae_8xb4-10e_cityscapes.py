# The main run on Cityscapes.
_base_ = [
    '../_base_/models/mal_vit-base-mae.py', '../_base_/datasets/cityscapes_boxes.py',
    '../_base_/schedules/mal_amp-10e.py', '../_base_/default_runtime.py'
]
