# SPDX-License-Identifier: Apache-2.0
from .mask_iou import MaskIoUMetric, evaluate_label_files, evaluate_masks, mean_ious

__all__ = ["MaskIoUMetric", "evaluate_label_files", "evaluate_masks", "mean_ious"]
