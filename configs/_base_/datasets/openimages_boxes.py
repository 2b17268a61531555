# OpenImages v6; what is labeled is made with tools/dataset_converters/boxes_to_coco.py.
_base_ = './coco_boxes.py'
data_root = 'data/OpenImages/'

train_dataloader = dict(
    dataset=dict(
        dataset=dict(
            type='OpenImagesBoxDataset',
            data_root=data_root,
            ann_file='annotations/oidv6-train-annotations-bbox.csv',
            data_prefix=dict(img='OpenImages/train/'),
            label_file='annotations/class-descriptions-boxable.csv',
            hierarchy_file='annotations/bbox_labels_600_hierarchy.json',
            meta_file='annotations/train-image-metas.pkl')))
test_dataloader = dict(
    dataset=dict(
        dataset=dict(
            data_root=data_root,
            ann_file='annotations/boxes_train.json',
            data_prefix=dict(img='OpenImages/train/'))))
test_evaluator = []  # no human masks to compare with
