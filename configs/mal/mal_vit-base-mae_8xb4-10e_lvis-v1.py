# The paper's run on LVIS v1: the main run with other boxes.
_base_ = [
    '../_base_/models/mal_vit-base-mae.py', '../_base_/datasets/lvis_v1_boxes.py',
    '../_base_/schedules/mal_amp-10e.py', '../_base_/default_runtime.py'
]
