# Swin-B from supervised ImageNet weights.
# Of its four stages the third, at stride 16, feeds the decoder; the fourth is not built.
_base_ = './mal_vit-base-mae_8xb4-10e_coco.py'

model = dict(
    network=dict(
        backbone=dict(
            _delete_=True,
            type='mmpretrain.SwinTransformer',
            arch=dict(
                embed_dims=128, depths=[2, 2, 18], num_heads=[4, 8, 16]),
            img_size=512,
            drop_path_rate=0.0,
            out_indices=(2, )),
        decoder=dict(in_channels=512),
        init_cfg=dict(
            checkpoint='https://mmassets.onedl.ai/mmclassification/v0/swin-transformer/convert/swin_base_patch4_window7_224-4670dd19.pth'  # noqa
        )))
