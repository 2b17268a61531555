# SPDX-License-Identifier: Apache-2.0
from .box_crop_dataset import BoxCropDataset
from .coco_box_dataset import CocoBoxDataset
from .seeded_sampler import SeededSampler
from .transforms import CropBBox, ExpandBBox, PackBoxCrop, RandomExpandBBox

__all__ = [
    "BoxCropDataset",
    "CocoBoxDataset",
    "CropBBox",
    "ExpandBBox",
    "PackBoxCrop",
    "RandomExpandBBox",
    "SeededSampler",
]
