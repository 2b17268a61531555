# SPDX-License-Identifier: Apache-2.0
from .box_sizes import AREA_LIMITS
from .crop_geometry import (
    bbox_to_crop,
    border_indices,
    box_masks,
    crop_and_resize,
    expand_bbox,
    mask_on_cells,
    resample_maps,
    resize_bboxes,
    resize_maps,
    span_coverage,
)

__all__ = [
    "AREA_LIMITS",
    "bbox_to_crop",
    "border_indices",
    "box_masks",
    "crop_and_resize",
    "expand_bbox",
    "mask_on_cells",
    "resample_maps",
    "resize_bboxes",
    "resize_maps",
    "span_coverage",
]
