# A small Swin at the demo's size; its second and last stage has stride 8.
_base_ = '../mal_vit-demo_1xb16_demo.py'

model = dict(
    network=dict(
        backbone=dict(
            _delete_=True,
            type='mmpretrain.SwinTransformer',
            arch=dict(embed_dims=32, depths=[2, 4], num_heads=[1, 2]),
            img_size=64,
            patch_size=4,
            window_size=4,
            drop_path_rate=0.0,
            out_indices=(1, ))))
