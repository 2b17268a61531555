# ResNet-101 from supervised ImageNet weights.
# Of its four stages the third, at stride 16, feeds the decoder; the fourth is not built.
# Batch statistics stay as they were pretrained: 4 crops a GPU are too few for others.
_base_ = './mal_vit-base-mae_8xb4-10e_coco.py'

model = dict(
    network=dict(
        backbone=dict(
            _delete_=True,
            type='mmpretrain.ResNet',
            depth=101,
            num_stages=3,
            strides=(1, 2, 2),
            dilations=(1, 1, 1),
            out_indices=(2, ),
            norm_eval=True),
        decoder=dict(in_channels=1024),
        init_cfg=dict(
            checkpoint='https://mmassets.onedl.ai/mmclassification/v0/resnet/resnet101_8xb32_in1k_20210831-539c63f8.pth'  # noqa
        )))
