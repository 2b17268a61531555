# ViT-L/16 from the weights of MAE.
_base_ = './mal_vit-base-mae_8xb4-10e_coco.py'

model = dict(
    network=dict(
        backbone=dict(
            arch='large'),
        decoder=dict(in_channels=1024),
        init_cfg=dict(
            checkpoint='https://mmassets.onedl.ai/mmselfsup/1.x/mae/mae_vit-large-p16_8xb512-fp16-coslr-1600e_in1k/mae_vit-large-p16_8xb512-fp16-coslr-1600e_in1k_20220825-cc7e98c9.pth'  # noqa
        )))
