# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from torch import Tensor

from mal_mmdet.structures import box_masks


def mask_quality(view_logits: Tensor, thresholds: Tensor, bboxes: Tensor) -> Tensor:
    """Temporary: expected IoU."""
    probs = view_logits.mean(0).sigmoid()
    probs = probs * box_masks(bboxes, probs.shape[1:])
    masks = (probs > thresholds[:, None, None]).to(probs)
    inside = (probs * masks).sum((1, 2))
    return inside / (masks.sum((1, 2)) + (probs * (1 - masks)).sum((1, 2))).clamp(min=1e-6)
