# SPDX-License-Identifier: Apache-2.0
"""From the probabilities of a crop to a mask in the image."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from math import floor

import torch.nn.functional as F
from torch import Tensor

from mal_mmdet.structures import AREA_LIMITS


def threshold_for_area(thresholds: float | Sequence[float], area: float) -> float:
    """The threshold of a box of ``area`` px²: one for all, or one each for small, medium, large."""
    if not isinstance(thresholds, Sequence):
        return thresholds
    if len(thresholds) == 1:
        return thresholds[0]
    if len(thresholds) != 3:
        raise ValueError(
            f"thresholds are {thresholds}, but must be one number, or three for boxes up to "
            "32² px², up to 96² px² and larger"
        )
    return thresholds[bisect_left(AREA_LIMITS, area)]


def pixel_span(low: float, high: float, length: int) -> tuple[int, int]:
    """Pixels ``start … stop − 1`` of an axis whose centres lie in [low, high), at least one.

    A span that holds no centre becomes the pixel in which it begins.
    """
    start, stop = floor(low + 0.5), floor(high + 0.5)
    if start >= stop or stop <= 0 or start >= length:
        start = floor(low)
        stop = start + 1
    start = min(max(start, 0), length - 1)
    return start, max(min(stop, length), start + 1)


def paste_mask(
    prob: Tensor,
    crop_bbox: Sequence[float],
    bbox: Sequence[float],
    threshold: float,
    out: Tensor,
) -> float:
    """Writes the mask of one box into the image frame.

    The probabilities are resized bilinearly to the crop's pixels; outside the box and outside
    the image nothing is foreground. A box whose probabilities all stay at or under the
    threshold gets the pixels of at least half its own maximum: every box gets a mask.

    Args:
        prob: Probabilities in the crop frame, shape (S, S).
        crop_bbox: Integers, (4,), image frame.
        bbox: The original box, (4,), image frame; it meets the image.
        threshold: Pixels with a probability above it are foreground.
        out: Bool, shape (H, W), all False; changed in place.

    Returns:
        Mean probability inside the mask.
    """
    left, top, right, bottom = (int(v) for v in crop_bbox)
    height, width = out.shape
    x0, x1 = pixel_span(bbox[0], bbox[2], width)
    y0, y1 = pixel_span(bbox[1], bbox[3], height)
    size = (bottom - top, right - left)
    resized = F.interpolate(prob[None, None], size, mode="bilinear", align_corners=False)[0, 0]
    window = resized[y0 - top : y1 - top, x0 - left : x1 - left]
    mask = window > threshold
    if not mask.any():
        mask = window >= window.max() / 2
    out[y0:y1, x0:x1] = mask
    return float(window[mask].mean())
