# ConvNeXt-B, which MMDetection has no config for: that of ConvNeXt-S with the rates of stochastic
# depth and layer-wise decay that ConvNeXt's authors use for B on COCO.
_base_ = './cascade-mask-rcnn_convnext-s-p4-w7_fpn_4conv1fc-giou_amp-ms-crop-3x_coco-mal.py'

# From ImageNet-1k and without weight averaging, as the stock weights of T and S: sizes compare.
checkpoint_file = 'https://mmassets.onedl.ai/mmclassification/v0/convnext/convnext-base_3rdparty_32xb128-noema_in1k_20220222-dba4f95f.pth'  # noqa

model = dict(
    backbone=dict(
        arch='base',
        drop_path_rate=0.7,
        init_cfg=dict(checkpoint=checkpoint_file)),
    neck=dict(in_channels=[128, 256, 512, 1024]))

optim_wrapper = dict(paramwise_cfg=dict(decay_rate=0.8))
