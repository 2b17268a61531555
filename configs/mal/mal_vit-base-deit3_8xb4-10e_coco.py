# ViT-B/16 from the weights of DeiT III: a ViT with layer scale. (mmpretrain's DeiT3 leaves the
# second layer norm of every layer unused; its weights fit the plain class.)
_base_ = './mal_vit-base-mae_8xb4-10e_coco.py'

model = dict(
    network=dict(
        backbone=dict(
            layer_scale_init_value=1e-6),
        init_cfg=dict(
            checkpoint='https://mmassets.onedl.ai/mmclassification/v0/deit3/deit3-base-p16_3rdparty_in1k_20221008-60b8c8bf.pth'  # noqa
        )))
