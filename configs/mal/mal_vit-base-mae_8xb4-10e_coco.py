# The paper's main run on COCO, from the weights of MAE.
_base_ = [
    '../_base_/models/mal_vit-base-mae.py', '../_base_/datasets/coco_boxes.py',
    '../_base_/schedules/mal_amp-10e.py', '../_base_/default_runtime.py'
]
