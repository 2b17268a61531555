# ConvNeXt-B from supervised ImageNet weights.
# Of its four stages the third, at stride 16, feeds the decoder; the fourth is not built.
_base_ = './mal_vit-base-mae_8xb4-10e_coco.py'

model = dict(
    network=dict(
        backbone=dict(
            _delete_=True,
            type='mmpretrain.ConvNeXt',
            arch=dict(depths=[3, 3, 27], channels=[128, 256, 512]),
            out_indices=(2, ),
            gap_before_final_norm=False),
        decoder=dict(in_channels=512),
        init_cfg=dict(
            checkpoint='https://mmassets.onedl.ai/mmclassification/v0/convnext/convnext-base_32xb128_in1k_20221207-fbdb5eb9.pth'  # noqa
        )))
