# ViT-B/14 from the weights of DINOv2, with crops of 448 pixels for 32 × 32 tokens.
_base_ = './mal_vit-base-mae_8xb4-10e_coco.py'

crop_size = 448

model = dict(
    network=dict(
        backbone=dict(
            img_size=crop_size,
            patch_size=14,
            layer_scale_init_value=1e-5),
        init_cfg=dict(
            checkpoint='https://mmassets.onedl.ai/mmpretrain/v1.0/dinov2/vit-base-p14_dinov2-pre_3rdparty_20230426-ba246503.pth'  # noqa
        )))

train_pipeline = _base_.train_pipeline
train_pipeline[1].size = crop_size
test_pipeline = _base_.test_pipeline
test_pipeline[1].size = crop_size
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
test_dataloader = dict(dataset=dict(pipeline=test_pipeline))
