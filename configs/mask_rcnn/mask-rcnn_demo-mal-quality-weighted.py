# MAL's labels, each mask's loss weighted by its `mask_quality`. Boxes are learned as ever.
_base_ = 'mask-rcnn_demo-mal.py'
custom_imports = dict(imports=['mal_mmdet'], allow_failed_imports=False)

model = dict(roi_head=dict(mask_head=dict(type='QualityMaskHead')))

train_pipeline = _base_.train_pipeline
# Behind LoadAnnotations and Resize, which keep their places: options for them stay the same.
train_pipeline.insert(3, dict(type='LoadMaskQuality'))
train_pipeline.append(dict(type='UnpackMaskQuality'))
train_dataloader = dict(
    dataset=dict(type='MaskQualityDataset', pipeline=train_pipeline))
