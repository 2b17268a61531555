# SPDX-License-Identifier: Apache-2.0
from .coco_file import find_problems, read_coco, strip_masks, without_nan, write_json
from .label_writer import LabelWriter, complete_crowd, encode_mask, report_path
from .paste import paste_mask, pixel_span, threshold_for_area

__all__ = [
    "LabelWriter",
    "complete_crowd",
    "encode_mask",
    "find_problems",
    "paste_mask",
    "pixel_span",
    "read_coco",
    "report_path",
    "strip_masks",
    "threshold_for_area",
    "without_nan",
    "write_json",
]
