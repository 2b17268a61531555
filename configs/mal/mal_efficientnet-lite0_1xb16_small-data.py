# A small data set of photographs and an encoder that knows ImageNet's classes, through timm
# (`pip install timm`): 30 to 40 minutes of a CPU core for some hundred or a thousand boxes.
_base_ = './mal_vit-demo_1xb16_small-data.py'
crop_size = 128
max_epochs = 10

model = dict(
    data_preprocessor=dict(
        mean=[127.5, 127.5, 127.5], std=[127.5, 127.5, 127.5]),
    network=dict(
        backbone=dict(
            _delete_=True,
            type='mmpretrain.TIMMBackbone',
            model_name='tf_efficientnet_lite0',
            features_only=True,
            feature_cls='getter',  # leaves out what comes after the map
            out_indices=(3, ),
            output_stride=8),
        decoder=dict(in_channels=112),
        channels_last=True,
        init_cfg=dict(
            type='PretrainedEncoder',
            checkpoint='hf-hub:timm/tf_efficientnet_lite0.in1k')))

# Without the negatives, which are for encoders that have yet to learn what objects are.
train_pipeline = [*_base_.train_pipeline[:3], *_base_.train_pipeline[4:]]
train_pipeline[1].size = crop_size
test_pipeline = _base_.test_pipeline
test_pipeline[1].size = crop_size
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
test_dataloader = dict(dataset=dict(pipeline=test_pipeline))

train_cfg = dict(max_epochs=max_epochs)
# What is pretrained learns more slowly.
optim_wrapper = dict(
    paramwise_cfg=dict(custom_keys=dict(backbone=dict(lr_mult=0.2))))
param_scheduler = _base_.param_scheduler
param_scheduler[1].end = max_epochs
param_scheduler[1].T_max = max_epochs - 1
