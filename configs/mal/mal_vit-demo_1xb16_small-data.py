# The demo's network on a small data set of photographs, without pretrained weights. The data set
# is repeated, so that an epoch, with its warm-ups, is some hundred iterations.
_base_ = './mal_vit-demo_1xb16_demo.py'
data_root = 'data/small/'
max_epochs = 50

# On photographs the demo's patches of 8 pixels made worse masks, of large boxes too.
model = dict(network=dict(backbone=dict(patch_size=4)))

# Without pretrained weights "dark" or "bright" is soon taken for "object". Negatives of both views
# forbid that; the CRF loss, which only sees differences of colour, does not notice them.
train_pipeline = [
    *_base_.train_pipeline[:3],
    dict(type='mmpretrain.Invert', prob=0.5),
    *_base_.train_pipeline[3:]
]
# Each crop of a box gives a slightly different mask with a small network. The mean of three is
# better than any one, and labels of a small data set are soon made.
test_pipeline = _base_.test_pipeline
test_pipeline[0].margin = [0.3, 0.2, 0.4]
train_dataloader = dict(
    dataset=dict(
        min_area=256,
        dataset=dict(
            _delete_=True,
            type='RepeatDataset',
            times=10,
            dataset=dict(
                type='CocoBoxDataset',
                data_root=data_root,
                ann_file='annotations/boxes_train.json',
                data_prefix=dict(img='images/'),
                pipeline=[dict(type='LoadImageFromFile')])),
        pipeline=train_pipeline))
test_dataloader = dict(
    dataset=dict(
        dataset=dict(
            data_root=data_root,
            ann_file='annotations/boxes_val.json',
            data_prefix=dict(img='images/')),
        pipeline=test_pipeline))
test_evaluator = dict(ann_file=data_root + 'annotations/instances_val.json')

train_cfg = dict(max_epochs=max_epochs)
param_scheduler = _base_.param_scheduler
param_scheduler[1].end = max_epochs
param_scheduler[1].T_max = max_epochs - 1
