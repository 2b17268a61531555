# Small enough for two CPU cores and no pretrained weights: the demo data in a few minutes.
_base_ = [
    '../_base_/models/mal_vit-base.py', '../_base_/datasets/coco_boxes.py',
    '../_base_/schedules/mal_10e.py', '../_base_/default_runtime.py'
]
data_root = 'data/demo/'
crop_size = 96
max_epochs = 10

model = dict(
    network=dict(
        backbone=dict(
            _delete_=True,
            type='mmpretrain.VisionTransformer',
            out_type='featmap',
            arch=dict(
                embed_dims=192,
                num_layers=4,
                num_heads=4,
                feedforward_channels=384),
            img_size=crop_size,
            patch_size=8),
        decoder=dict(in_channels=192, channels=64)),
    mil_loss=dict(warmup_iters=50),
    crf_loss=dict(warmup_iters=100))

train_pipeline = _base_.train_pipeline
train_pipeline[1].size = crop_size
test_pipeline = _base_.test_pipeline
test_pipeline[1].size = crop_size
train_dataloader = dict(
    batch_size=16,
    num_workers=2,
    dataset=dict(
        min_area=0,
        dataset=dict(
            data_root=data_root,
            ann_file='boxes_train.json',
            data_prefix=dict(img='train/')),
        pipeline=train_pipeline))
test_dataloader = dict(
    num_workers=2,
    dataset=dict(
        dataset=dict(
            data_root=data_root,
            ann_file='boxes_val.json',
            data_prefix=dict(img='val/')),
        pipeline=test_pipeline))
test_evaluator = dict(ann_file=data_root + 'instances_val.json')

optim_wrapper = dict(optimizer=dict(lr=1e-3))
default_hooks = dict(logger=dict(interval=25))
