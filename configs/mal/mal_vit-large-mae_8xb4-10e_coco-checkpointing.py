# ViT-L/16 in less memory: the layers' activations are computed again in the backward pass.
_base_ = './mal_vit-large-mae_8xb4-10e_coco.py'

activation_checkpointing = [f'student.backbone.layers.{i}' for i in range(24)]
