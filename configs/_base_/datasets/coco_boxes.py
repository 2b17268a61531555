# One crop a box for training, one image with the crops of all its boxes for labeling.
# Only files of boxes are read: make them with tools/dataset_converters/boxes_only.py.
data_root = 'data/coco/'
crop_size = 512

train_pipeline = [
    dict(type='RandomExpandBBox', margin=1.2),
    dict(type='CropBBox', size=crop_size),
    dict(type='RandomFlip', prob=0.5),
    dict(
        type='MultiBranch',
        branch_field=['student', 'teacher'],
        student=[
            dict(
                type='RandomApply',
                prob=0.5,
                transforms=dict(
                    type='FastColorJitter',
                    brightness=0.4,
                    contrast=0.4,
                    saturation=0.2,
                    hue=0.1)),
            dict(  # grey: all colour taken away
                type='mmpretrain.ColorTransform',
                magnitude=-1,
                prob=0.2,
                random_negative_prob=0.0),
            dict(type='RandomGaussianBlur', prob=0.5, sigma=(0.1, 2.0)),
            dict(type='PackBoxCrop')
        ],
        teacher=[dict(type='PackBoxCrop', with_box=False)])
]
test_pipeline = [
    dict(type='ExpandBBox', margin=0.3),
    dict(type='CropBBox', size=crop_size),
    dict(type='PackBoxCrop')
]

train_dataloader = dict(
    batch_size=4,
    num_workers=4,
    persistent_workers=True,
    sampler=dict(type='SeededSampler', shuffle=True),
    dataset=dict(
        type='BoxCropDataset',
        min_area=2048,
        min_side=2,
        dataset=dict(
            type='CocoBoxDataset',
            data_root=data_root,
            ann_file='annotations/boxes_train2017.json',
            data_prefix=dict(img='train2017/'),
            pipeline=[dict(type='LoadImageFromFile')]),
        pipeline=train_pipeline))
test_dataloader = dict(
    batch_size=1,
    num_workers=4,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        type='BoxCropDataset',
        group_by_image=True,
        dataset=dict(
            type='CocoBoxDataset',
            data_root=data_root,
            ann_file='annotations/boxes_val2017.json',
            data_prefix=dict(img='val2017/'),
            test_mode=True,
            pipeline=[dict(type='LoadImageFromFile')]),
        pipeline=test_pipeline))
# Only `tools/test.py` reads human masks, to say how good the predicted ones are.
# With `--boxes` that is the mask AP of a detector's boxes, by this metric.
detection_metric = 'CocoMetric'
test_evaluator = dict(
    type='MaskIoUMetric',
    ann_file=data_root + 'annotations/instances_val2017.json')
