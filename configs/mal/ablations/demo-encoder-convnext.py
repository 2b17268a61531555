# A small ConvNeXt at the demo's size; its second and last stage has stride 8.
_base_ = '../mal_vit-demo_1xb16_demo.py'

model = dict(
    network=dict(
        backbone=dict(
            _delete_=True,
            type='mmpretrain.ConvNeXt',
            arch=dict(depths=[2, 4], channels=[32, 64]),
            stem_patch_size=4,
            out_indices=(1, ),
            gap_before_final_norm=False)))
