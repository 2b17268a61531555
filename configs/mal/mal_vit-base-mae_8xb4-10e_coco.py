# The paper's main run on COCO, from the weights of MAE.
_base_ = [
    '../_base_/models/mal_vit-base.py', '../_base_/datasets/coco_boxes.py',
    '../_base_/schedules/mal_10e.py', '../_base_/default_runtime.py'
]

model = dict(
    network=dict(
        init_cfg=dict(
            type='PretrainedEncoder',
            checkpoint='https://mmassets.onedl.ai/mmselfsup/1.x/mae/mae_vit-base-p16_8xb512-fp16-coslr-1600e_in1k/mae_vit-base-p16_8xb512-fp16-coslr-1600e_in1k_20220825-f7569ca2.pth'  # noqa
        )))

optim_wrapper = dict(type='AmpOptimWrapper', dtype='float16', loss_scale='dynamic')
