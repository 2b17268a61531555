# SPDX-License-Identifier: Apache-2.0
"""How well the ``mask_quality`` of labels ranks their masks, measured with human masks."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from mal_mmdet.labeling import read_coco, refuse_problems
from mal_mmdet.progress import track

from .mask_iou import check_pairs, paired_iou

WORST_SHARE = 0.2


def rank_correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Spearman's, of two (N,) arrays; equal values share a rank. NaN if one is constant."""
    ranks = []
    for values in (a, b):
        _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
        if len(counts) < 2:
            return float("nan")
        ranks.append((counts.cumsum() - (counts - 1) / 2)[inverse])
    return float(np.corrcoef(*ranks)[0, 1])


def rank_quality(qualities: np.ndarray, ious: np.ndarray) -> dict[str, float]:
    """Compares estimates of mask quality with the true IoU.

    Args:
        qualities: Of each mask, (N,); the larger, the better.
        ious: Likewise.

    Returns:
        ``num``; ``spearman``, the rank correlation, NaN if one of the two is constant; and
        ``miou`` of all masks, ``miou_best`` and ``miou_worst`` of the best 80 % and the worst
        20 % by the estimate, NaN where there are no masks.
    """

    def mean(values: np.ndarray) -> float:
        return float(values.mean()) if len(values) else float("nan")

    ordered = ious[np.argsort(qualities, kind="stable")]
    worst = round(WORST_SHARE * len(ordered))
    return dict(
        num=len(ordered),
        spearman=rank_correlation(qualities, ious),
        miou=mean(ordered),
        miou_best=mean(ordered[worst:]),
        miou_worst=mean(ordered[:worst]),
    )


def measure_quality(pred_file: str | Path, truth_file: str | Path) -> dict[str, float]:
    """:func:`rank_quality` of a label file, matched with human masks by annotation id.

    Annotations without ``mask_quality``, such as human ones that labeling kept, and crowds of
    the ground truth do not take part.

    Raises:
        ValueError: An annotation cannot be used, none has ``mask_quality``, a human mask is
            missing, a pair of masks differs in size, or ids do not belong together, see
            :func:`check_pairs`.
    """
    labels, truth = read_coco(pred_file), read_coco(truth_file)
    for coco, file in ((labels, pred_file), (truth, truth_file)):
        refuse_problems(coco, file, allow_outside=True, boxes=False)
    pred = {ann["id"]: ann for ann in labels["annotations"] if "mask_quality" in ann}
    if not pred:
        raise ValueError(f"no annotation of {pred_file} has mask_quality")
    check_pairs(labels, truth, pred_file, truth_file)
    images = {image["id"]: image for image in truth["images"]}
    qualities, ious = [], []
    for ann in track(truth["annotations"], "comparing masks", "masks"):
        if ann.get("iscrowd") or ann["id"] not in pred:
            continue
        label = pred[ann["id"]]
        qualities.append(label["mask_quality"])
        ious.append(paired_iou(label.get("segmentation"), ann, images[ann["image_id"]]))
    return rank_quality(np.array(qualities, dtype=float), np.array(ious, dtype=float))
