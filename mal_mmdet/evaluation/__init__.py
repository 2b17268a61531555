# SPDX-License-Identifier: Apache-2.0
from .boundary_iou import boundary_iou
from .category_groups import COCO_SEMI_STUFF, COCO_THINGS, resolve_groups
from .clustering_score import ClusteringScoreMetric, clustering_score
from .coco_ap import coco_ap
from .mask_iou import MaskIoUMetric, evaluate_label_files, evaluate_masks, mean_ious
from .quality_ranking import measure_quality, rank_quality

__all__ = [
    "COCO_SEMI_STUFF",
    "COCO_THINGS",
    "ClusteringScoreMetric",
    "MaskIoUMetric",
    "boundary_iou",
    "clustering_score",
    "coco_ap",
    "evaluate_label_files",
    "evaluate_masks",
    "mean_ious",
    "measure_quality",
    "rank_quality",
    "resolve_groups",
]
