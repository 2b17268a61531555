# The authors' released network: a ViT-B whose patch projection is a convolutional stem, trained
# from scratch, while the layers start from MAE. Their weights, converted by
# tools/model_converters/mal_released_to_mmdet.py, load into it.
_base_ = './mal_vit-base-mae_8xb4-10e_coco.py'

model = dict(
    network=dict(
        backbone=dict(
            _delete_=True,
            type='ConvStemVisionTransformer',
            arch='base',
            img_size=512,
            out_type='featmap')))
