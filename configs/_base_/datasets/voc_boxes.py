# PASCAL VOC 2007 and 2012; what is labeled is made with tools/dataset_converters/boxes_to_coco.py.
_base_ = './coco_boxes.py'
data_root = 'data/VOCdevkit/'

train_dataloader = dict(
    dataset=dict(
        dataset=dict(
            _delete_=True,
            type='ConcatDataset',
            ignore_keys=['dataset_type'],  # VOC2007 and VOC2012
            datasets=[
                dict(
                    type='VOCDataset',
                    data_root=data_root,
                    ann_file=f'{year}/ImageSets/Main/trainval.txt',
                    data_prefix=dict(sub_data_root=f'{year}/'),
                    pipeline=[dict(type='LoadImageFromFile')])
                for year in ('VOC2007', 'VOC2012')
            ])))
test_dataloader = dict(
    dataset=dict(
        dataset=dict(
            data_root=data_root,
            ann_file='annotations/boxes_trainval0712.json',
            data_prefix=dict(img=''))))
test_evaluator = []  # no human masks to compare with
