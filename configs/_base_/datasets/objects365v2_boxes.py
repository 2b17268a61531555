# Objects365 v2, which has boxes alone.
_base_ = './coco_boxes.py'
data_root = 'data/Objects365/Obj365_v2/'

train_dataloader = dict(
    dataset=dict(
        dataset=dict(
            type='Objects365V2Dataset',
            data_root=data_root,
            ann_file='annotations/zhiyuan_objv2_train.json',
            data_prefix=dict(img='train/'))))
test_dataloader = dict(
    dataset=dict(
        dataset=dict(
            data_root=data_root,
            ann_file='annotations/zhiyuan_objv2_val.json',
            data_prefix=dict(img='val/'),
            path_parts=2)))  # images/v1/patch8/x.jpg lies in patch8/x.jpg
test_evaluator = []  # no human masks to compare with
