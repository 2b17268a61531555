# SPDX-License-Identifier: Apache-2.0
from .box_crop import CropBBox, ExpandBBox, RandomExpandBBox
from .formatting import PackBoxCrop

__all__ = ["CropBBox", "ExpandBBox", "PackBoxCrop", "RandomExpandBBox"]
