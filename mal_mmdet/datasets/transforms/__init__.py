# SPDX-License-Identifier: Apache-2.0
from .box_crop import CropBBox, ExpandBBox, RandomExpandBBox
from .formatting import PackBoxCrop
from .mask_quality import LoadMaskQuality, UnpackMaskQuality
from .photometric import FastColorJitter, RandomGaussianBlur

__all__ = [
    "CropBBox",
    "ExpandBBox",
    "FastColorJitter",
    "LoadMaskQuality",
    "PackBoxCrop",
    "RandomExpandBBox",
    "RandomGaussianBlur",
    "UnpackMaskQuality",
]
