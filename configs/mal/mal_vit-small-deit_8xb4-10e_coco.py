# ViT-S/16 from the weights of DeiT.
_base_ = './mal_vit-base-mae_8xb4-10e_coco.py'

model = dict(
    network=dict(
        backbone=dict(
            arch='deit-small'),
        decoder=dict(in_channels=384),
        init_cfg=dict(
            checkpoint='https://mmassets.onedl.ai/mmclassification/v0/deit/deit-small_pt-4xb256_in1k_20220218-9425b9bb.pth'  # noqa
        )))
