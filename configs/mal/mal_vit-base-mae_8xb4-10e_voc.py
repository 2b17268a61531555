# The main run on PASCAL VOC 2007 and 2012.
_base_ = [
    '../_base_/models/mal_vit-base-mae.py', '../_base_/datasets/voc_boxes.py',
    '../_base_/schedules/mal_amp-10e.py', '../_base_/default_runtime.py'
]
