# ViT-B/16 from the weights of MoCo v3.
_base_ = './mal_vit-base-mae_8xb4-10e_coco.py'

model = dict(
    network=dict(
        init_cfg=dict(
            checkpoint='https://mmassets.onedl.ai/mmselfsup/1.x/mocov3/mocov3_vit-base-p16_16xb256-amp-coslr-300e_in1k/mocov3_vit-base-p16_16xb256-amp-coslr-300e_in1k-224_20220826-25213343.pth'  # noqa
        )))
