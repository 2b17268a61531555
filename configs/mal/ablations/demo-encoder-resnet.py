# A small ResNet at the demo's size; its third and last stage has stride 8.
_base_ = '../mal_vit-demo_1xb16_demo.py'

model = dict(
    network=dict(
        backbone=dict(
            _delete_=True,
            type='mmpretrain.ResNet_CIFAR',
            depth=18,
            stem_channels=16,
            base_channels=16,
            num_stages=3,
            strides=(2, 2, 2),
            dilations=(1, 1, 1),
            out_indices=(2, ),
            norm_cfg=dict(type='GN', num_groups=8))))
