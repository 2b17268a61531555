# The ViT-B/16 of the paper's main run starts from the weights of MAE.
_base_ = './mal_vit-base.py'

model = dict(
    network=dict(
        init_cfg=dict(
            type='PretrainedEncoder',
            checkpoint='https://mmassets.onedl.ai/mmselfsup/1.x/mae/mae_vit-base-p16_8xb512-fp16-coslr-1600e_in1k/mae_vit-base-p16_8xb512-fp16-coslr-1600e_in1k_20220825-f7569ca2.pth'  # noqa
        )))
