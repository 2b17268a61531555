# ViT-H/14 from the weights of MAE. Crops of 448 pixels give its patches of 14 the same 32 × 32
# tokens, and the masks the same 128 × 128 cells, as 512 give the others.
_base_ = './mal_vit-base-mae_8xb4-10e_coco.py'

crop_size = 448

model = dict(
    network=dict(
        backbone=dict(
            arch='huge',
            img_size=crop_size,
            patch_size=14),
        decoder=dict(in_channels=1280),
        init_cfg=dict(
            checkpoint='https://mmassets.onedl.ai/mmselfsup/1.x/mae/mae_vit-huge-p16_8xb512-fp16-coslr-1600e_in1k/mae_vit-huge-p16_8xb512-fp16-coslr-1600e_in1k_20220916-ff848775.pth'  # noqa
        )))

train_pipeline = _base_.train_pipeline
train_pipeline[1].size = crop_size
test_pipeline = _base_.test_pipeline
test_pipeline[1].size = crop_size
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
test_dataloader = dict(dataset=dict(pipeline=test_pipeline))
