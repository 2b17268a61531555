# ViT-B/16 from the weights of DINOv3, through timm (`pip install timm`).
_base_ = './mal_vit-base-mae_8xb4-10e_coco.py'

model = dict(
    network=dict(
        backbone=dict(
            _delete_=True,
            type='mmpretrain.TIMMBackbone',
            model_name='vit_base_patch16_dinov3',
            features_only=True,
            out_indices=(-1, )),
        init_cfg=dict(
            checkpoint='hf-hub:timm/vit_base_patch16_dinov3.lvd1689m'  # noqa
        )))
