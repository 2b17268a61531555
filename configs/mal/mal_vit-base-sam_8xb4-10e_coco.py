# The image encoder of Segment Anything, ViT-B/16 with its neck, from SAM's weights. These have
# seen masks: the labels are then no longer made from boxes alone.
_base_ = './mal_vit-base-mae_8xb4-10e_coco.py'

model = dict(
    network=dict(
        backbone=dict(
            _delete_=True,
            type='mmpretrain.ViTSAM',
            img_size=512),
        decoder=dict(in_channels=256),
        init_cfg=dict(
            checkpoint='https://mmassets.onedl.ai/mmclassification/v1/vit_sam/vit-base-p16_sam-pre_3rdparty_sa1b-1024px_20230411-2320f9cc.pth'  # noqa
        )))
