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
    write_text,
)
from .export import EXPORTS, check_labels, export_labels
from .import_boxes import IMPORTS, image_size, import_boxes, read_classes
from .label_writer import MASK_FORMATS, LabelWriter, complete_crowd, encode_mask, report_path
from .paste import paste_mask, pixel_span, threshold_for_area
from .polygons import join_parts, mask_to_polygons, segmentation_to_mask, to_rle
from .youtube_vis import merge_masks, read_vis, split_frames

__all__ = [
    "EXPORTS",
    "IMPORTS",
    "MASK_FORMATS",
    "LabelWriter",
    "check_labels",
    "complete_crowd",
    "encode_mask",
    "export_labels",
    "find_problems",
    "image_file",
    "image_size",
    "import_boxes",
    "join_parts",
    "mask_to_polygons",
    "merge_masks",
    "paste_mask",
    "pixel_span",
    "read_boxes",
    "read_classes",
    "read_coco",
    "read_detections",
    "read_lists",
    "read_vis",
    "replacing",
    "report_path",
    "segmentation_to_mask",
    "split_frames",
    "strip_masks",
    "threshold_for_area",
    "to_rle",
    "without_nan",
    "write_json",
    "write_text",
]
