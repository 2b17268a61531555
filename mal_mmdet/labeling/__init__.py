# SPDX-License-Identifier: Apache-2.0
from .coco_file import (
    check_annotations,
    find_problems,
    has_mask,
    image_file,
    read_boxes,
    read_coco,
    read_lists,
    replacing,
    strip_masks,
    without_nan,
    write_json,
    write_text,
)
from .export import EXPORTS, check_labels, check_masks, export_labels
from .import_boxes import IMPORTS, image_size, import_boxes, read_classes
from .json_stream import JSONList, ListWriter, stream_json, write_around
from .label_writer import (
    LOW_QUALITY,
    MASK_FORMATS,
    LabelWriter,
    complete_crowd,
    encode_mask,
    report_path,
    shard_folder,
)
from .mask_quality import mask_quality
from .paste import (
    MaskWindow,
    encode_window,
    mask_window,
    paste_mask,
    pixel_span,
    threshold_for_area,
)
from .polygons import join_parts, mask_to_polygons, segmentation_to_mask, to_rle
from .review import REJECTED, apply_review, read_decisions
from .shards import LabelShards, sha256
from .youtube_vis import merge_masks, read_vis, split_frames

__all__ = [
    "EXPORTS",
    "IMPORTS",
    "LOW_QUALITY",
    "MASK_FORMATS",
    "REJECTED",
    "JSONList",
    "LabelShards",
    "LabelWriter",
    "ListWriter",
    "MaskWindow",
    "apply_review",
    "check_annotations",
    "check_labels",
    "check_masks",
    "complete_crowd",
    "encode_mask",
    "encode_window",
    "export_labels",
    "find_problems",
    "has_mask",
    "image_file",
    "image_size",
    "import_boxes",
    "join_parts",
    "mask_quality",
    "mask_to_polygons",
    "mask_window",
    "merge_masks",
    "paste_mask",
    "pixel_span",
    "read_boxes",
    "read_classes",
    "read_coco",
    "read_decisions",
    "read_lists",
    "read_vis",
    "replacing",
    "report_path",
    "segmentation_to_mask",
    "sha256",
    "shard_folder",
    "split_frames",
    "stream_json",
    "strip_masks",
    "threshold_for_area",
    "to_rle",
    "without_nan",
    "write_around",
    "write_json",
    "write_text",
]
