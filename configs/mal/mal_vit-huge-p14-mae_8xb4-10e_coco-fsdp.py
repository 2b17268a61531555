# ViT-H/14 with weights, gradients and the optimizer's state sharded over the GPUs, and the layers'
# activations computed again in the backward pass.
_base_ = './mal_vit-huge-p14-mae_8xb4-10e_coco.py'

runner_type = 'FlexibleRunner'
# A fused optimizer would let each rank decide for itself whether its gradients overflowed.
optim_wrapper = dict(optimizer=dict(fused=False))
strategy = dict(
    type='ResumableFSDPStrategy',
    model_wrapper=dict(auto_wrap_policy='shard_networks_by_layer'),
    activation_checkpointing=dict(check_fn='is_vit_layer'))
