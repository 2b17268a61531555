# The main run on OpenImages v6.
_base_ = [
    '../_base_/models/mal_vit-base-mae.py', '../_base_/datasets/openimages_boxes.py',
    '../_base_/schedules/mal_amp-10e.py', '../_base_/default_runtime.py'
]
