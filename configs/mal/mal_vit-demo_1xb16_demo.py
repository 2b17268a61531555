# Small enough for two CPU cores and no pretrained weights: the demo data in a few minutes.
_base_ = [
    '../_base_/models/mal_vit-base.py', '../_base_/datasets/coco_boxes.py',
    '../_base_/schedules/mal_10e.py', '../_base_/default_runtime.py'
]
data_root = 'data/demo/'
crop_size = 64
max_epochs = 48

model = dict(
    network=dict(
        backbone=dict(
            _delete_=True,
            type='mmpretrain.VisionTransformer',
            arch=dict(
                embed_dims=64,
                num_layers=4,
                num_heads=2,
                feedforward_channels=128),
            img_size=crop_size,
            patch_size=8,
            out_type='featmap'),
        decoder=dict(in_channels=64, channels=32)),
    mil_loss=dict(warmup_iters=50),
    # Neighbours in a mask of 32 cells lie further apart in the image, and in colour, than in
    # one of 128. The warm-up outlasts the first epoch here: this loss starts with the second.
    crf_loss=dict(zeta=0.3),
    flip_test=True,
    # After so short a training masks have blunt tips and holes, and these cells are coarse.
    refine_test=True,
    thresholds=0.5)

train_pipeline = _base_.train_pipeline
train_pipeline[1].size = crop_size
test_pipeline = _base_.test_pipeline
test_pipeline[1].size = crop_size
train_dataloader = dict(
    batch_size=16,
    num_workers=0,  # a crop takes less than a worker needs to hand it over
    persistent_workers=False,
    dataset=dict(
        min_area=0,
        dataset=dict(
            data_root=data_root,
            ann_file='boxes_train.json',
            data_prefix=dict(img='train/')),
        pipeline=train_pipeline))
test_dataloader = dict(
    num_workers=0,
    dataset=dict(
        dataset=dict(
            data_root=data_root,
            ann_file='boxes_val.json',
            data_prefix=dict(img='val/')),
        pipeline=test_pipeline))
test_evaluator = dict(ann_file=data_root + 'instances_val.json')

train_cfg = dict(max_epochs=max_epochs)
optim_wrapper = dict(optimizer=dict(lr=6e-4))
param_scheduler = _base_.param_scheduler
param_scheduler[1].end = max_epochs
param_scheduler[1].T_max = max_epochs - 1
auto_scale_lr = dict(base_batch_size=16)
default_hooks = dict(logger=dict(interval=25))
