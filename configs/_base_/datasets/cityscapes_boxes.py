# Cityscapes as mmdet's converter writes it, less the masks.
_base_ = './coco_boxes.py'
data_root = 'data/cityscapes/'

train_dataloader = dict(
    dataset=dict(
        dataset=dict(
            type='CityscapesDataset',
            data_root=data_root,
            ann_file='annotations/instancesonly_filtered_gtFine_train.json',
            data_prefix=dict(img='leftImg8bit/train/'))))
test_dataloader = dict(
    dataset=dict(
        dataset=dict(
            data_root=data_root,
            ann_file='annotations/instancesonly_filtered_gtFine_val.json',
            data_prefix=dict(img='leftImg8bit/val/'))))
test_evaluator = dict(
    ann_file=data_root +
    'annotations/instancesonly_filtered_gtFine_val.json')
