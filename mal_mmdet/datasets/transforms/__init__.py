# SPDX-License-Identifier: Apache-2.0
from .box_crop import CropBBox, ExpandBBox, RandomExpandBBox
from .formatting import PackBoxCrop
from .mask_quality import LoadMaskQuality, UnpackMaskQuality

__all__ = [
    "CropBBox",
    "ExpandBBox",
    "LoadMaskQuality",
    "PackBoxCrop",
    "RandomExpandBBox",
    "UnpackMaskQuality",
]
