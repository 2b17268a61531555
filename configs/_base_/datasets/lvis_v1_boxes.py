# LVIS v1: its own files are read, less their masks. Needs the package lvis.
_base_ = './coco_boxes.py'
data_root = 'data/lvis_v1/'

train_dataloader = dict(
    dataset=dict(
        dataset=dict(
            type='LVISV1Dataset',
            data_root=data_root,
            ann_file='annotations/lvis_v1_train.json',
            data_prefix=dict(img=''))))
test_dataloader = dict(
    dataset=dict(
        dataset=dict(
            data_root=data_root,
            ann_file='annotations/lvis_v1_val.json',
            data_prefix=dict(img=''))))
detection_metric = 'LVISMetric'
test_evaluator = dict(ann_file=data_root + 'annotations/lvis_v1_val.json')
