# SPDX-License-Identifier: Apache-2.0
from .coco_file import (
    find_problems,
    image_file,
    read_boxes,
    read_coco,
    read_detections,
    read_lists,
    replacing,
    strip_masks,
    without_nan,
    write_json,
)
from .label_writer import LabelWriter, complete_crowd, encode_mask, report_path
from .paste import paste_mask, pixel_span, threshold_for_area
from .youtube_vis import merge_masks, read_vis, split_frames

__all__ = [
    "LabelWriter",
    "complete_crowd",
    "encode_mask",
    "find_problems",
    "image_file",
    "merge_masks",
    "paste_mask",
    "pixel_span",
    "read_boxes",
    "read_coco",
    "read_detections",
    "read_lists",
    "read_vis",
    "replacing",
    "report_path",
    "split_frames",
    "strip_masks",
    "threshold_for_area",
    "without_nan",
    "write_json",
]
