# SPDX-License-Identifier: Apache-2.0
from .box_crop_dataset import BoxCropDataset
from .boxes_to_coco import boxes_to_coco, build_training_boxes
from .coco_box_dataset import CocoBoxDataset
from .image_box_dataset import ImageBoxDataset
from .label_batch_sampler import LabelBatchSampler
from .mask_quality_dataset import MaskQualityDataset
from .openimages_box_dataset import OpenImagesBoxDataset
from .seeded_sampler import SeededSampler
from .transforms import (
    CropBBox,
    ExpandBBox,
    FastColorJitter,
    LoadMaskQuality,
    PackBoxCrop,
    RandomExpandBBox,
    RandomGaussianBlur,
    UnpackMaskQuality,
)

__all__ = [
    "BoxCropDataset",
    "CocoBoxDataset",
    "CropBBox",
    "ExpandBBox",
    "FastColorJitter",
    "ImageBoxDataset",
    "LabelBatchSampler",
    "LoadMaskQuality",
    "MaskQualityDataset",
    "OpenImagesBoxDataset",
    "PackBoxCrop",
    "RandomExpandBBox",
    "RandomGaussianBlur",
    "SeededSampler",
    "UnpackMaskQuality",
    "boxes_to_coco",
    "build_training_boxes",
]
