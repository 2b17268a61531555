# SPDX-License-Identifier: Apache-2.0
from .coco_file import (
    find_problems,
    image_file,
    read_boxes,
    read_coco,
    read_lists,
    strip_masks,
    without_nan,
    write_json,
)
from .label_writer import MASK_FORMATS, LabelWriter, complete_crowd, encode_mask, report_path
from .paste import paste_mask, pixel_span, threshold_for_area
from .polygons import join_parts, mask_to_polygons, segmentation_to_mask
from .youtube_vis import merge_masks, read_vis, split_frames

__all__ = [
    "MASK_FORMATS",
    "LabelWriter",
    "complete_crowd",
    "encode_mask",
    "find_problems",
    "image_file",
    "join_parts",
    "mask_to_polygons",
    "merge_masks",
    "paste_mask",
    "pixel_span",
    "read_boxes",
    "read_coco",
    "read_lists",
    "read_vis",
    "report_path",
    "segmentation_to_mask",
    "split_frames",
    "strip_masks",
    "threshold_for_area",
    "without_nan",
    "write_json",
]
