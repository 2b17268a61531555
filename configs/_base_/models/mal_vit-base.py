# Mask Auto-Labeler with a ViT-B/16 at the paper's crop size.
model = dict(
    type='MaskAutoLabeler',
    data_preprocessor=dict(
        type='CropDataPreprocessor',
        mean=[123.675, 116.28, 103.53],
        std=[58.395, 57.12, 57.375],
        bgr_to_rgb=True),
    network=dict(
        type='MaskNetwork',
        backbone=dict(
            type='mmpretrain.VisionTransformer',
            arch='base',
            img_size=512,
            patch_size=16,
            out_type='featmap'),
        decoder=dict(type='AttentionDecoder', in_channels=768)),
    mil_loss=dict(type='MILLoss', loss_weight=4.0, warmup_iters=1000),
    crf_loss=dict(
        type='CRFLoss',
        loss_weight=0.5,
        warmup_iters=4000,
        zeta=0.1,
        omega=1.0),
    label_source='student',
    thresholds=0.1)
