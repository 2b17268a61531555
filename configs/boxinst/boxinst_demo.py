# BoxInst, which learns masks from boxes in the detector itself, at the size of the demo's CondInst.
_base_ = '../condinst/condinst_demo-mal.py'

model = dict(
    type='BoxInst',
    data_preprocessor=dict(
        _delete_=True,
        type='BoxInstDataPreprocessor',
        mean=[123.675, 116.28, 103.53],
        std=[58.395, 57.12, 57.375],
        bgr_to_rgb=True,
        pad_size_divisor=32,
        mask_stride=4,
        pairwise_size=3,
        pairwise_dilation=2,
        pairwise_color_thresh=0.3,
        bottom_pixels_removed=10),
    bbox_head=dict(type='BoxInstBboxHead', num_params=593),
    mask_head=dict(
        _delete_=True,
        type='BoxInstMaskHead',
        num_layers=3,
        feat_channels=16,
        size_of_interest=8,
        mask_out_stride=4,
        topk_masks_per_img=64,
        # The whole run; the stock 10,000 are a ninth of theirs. With a ninth (67 of 600 were
        # tried) the masks of a network without pretraining soon turn empty, in which no two
        # neighbours differ.
        warmup_iters=1200,
        mask_feature_head=dict(
            in_channels=64,
            feat_channels=64,
            start_level=0,
            end_level=2,
            out_channels=16,
            mask_stride=8,
            num_stacked_convs=2,
            norm_cfg=dict(type='BN', requires_grad=True)),
        loss_mask=dict(type='DiceLoss', use_sigmoid=True, activate=True, eps=5e-6)))
train_pipeline = _base_.train_pipeline
train_pipeline[1].with_mask = False
train_dataloader = dict(dataset=dict(ann_file='boxes_train.json', pipeline=train_pipeline))
