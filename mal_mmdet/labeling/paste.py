# SPDX-License-Identifier: Apache-2.0
"""From the probabilities of a crop to a mask in the image."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from math import floor, isfinite
from typing import Any, NamedTuple

import numba
import numpy as np
import torch
from torch import Tensor

from mal_mmdet.structures import AREA_LIMITS

from .rle import compress_runs


class MaskWindow(NamedTuple):
    """A mask in the pixels of its box.

    Attributes:
        x0, y0: Column and row of the image where the window begins.
        mask: Bool, shape (h, w); outside it nothing is foreground.
        score: Mean probability inside the mask.
    """

    x0: int
    y0: int
    mask: np.ndarray
    score: float


def threshold_for_area(thresholds: float | Sequence[float], area: float) -> float:
    """The threshold of a box of ``area`` px²: one for all, or one each for small, medium, large.

    Raises:
        ValueError: Neither one threshold nor three.
    """
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
    """Pixels ``start … stop − 1`` of an axis whose centres lie in (low, high], at least one.

    A span that holds no centre becomes the pixel in which it begins.
    """
    start, stop = floor(low + 0.5), floor(high + 0.5)
    if start >= stop or stop <= 0 or start >= length:
        start = floor(low)
        stop = start + 1
    start = min(max(start, 0), length - 1)
    return start, max(min(stop, length), start + 1)


def mask_window(
    prob: np.ndarray,
    crop_bbox: Sequence[float],
    bbox: Sequence[float],
    threshold: float,
    image_shape: tuple[int, int],
) -> MaskWindow:
    """The mask of one box, in the pixels of the box alone.

    The probabilities are resized bilinearly to the crop's pixels; outside the box and outside
    the image nothing is foreground. A box whose probabilities all stay at or under the
    threshold gets the pixels of at least half its own maximum: every box gets a mask.

    Args:
        prob: Probabilities in the crop frame, float32, shape (S, S).
        crop_bbox: Integers, (4,), image frame.
        bbox: The original box, (4,), image frame; it meets the image.
        threshold: Pixels with a probability above it are foreground.
        image_shape: Height and width of the image.
    """
    left, top, right, bottom = (int(v) for v in crop_bbox)
    x0, x1 = pixel_span(bbox[0], bbox[2], image_shape[1])
    y0, y1 = pixel_span(bbox[1], bbox[3], image_shape[0])
    prob = np.ascontiguousarray(prob, np.float32)
    rows, columns = (top, bottom, y0, y1), (left, right, x0, x1)
    return MaskWindow(x0, y0, *_cut_mask(prob, rows, columns, np.float32(threshold)))


# Threads paste and encode beside the network: compiled code does not hold Python's lock, which
# whoever starts the operations of a GPU needs all the time.
# Compiling takes three seconds, the first time on a machine.
@numba.njit(nogil=True, cache=True)
def _cut_mask(prob, rows, columns, threshold):
    """The mask in some rows and columns of the image, and its mean probability."""
    above, below, row_weight = _taps(*rows, prob.shape[0])
    before, after, column_weight = _taps(*columns, prob.shape[1])
    values = np.empty((len(above), len(before)), np.float32)
    line = np.empty(prob.shape[1], np.float32)
    for y in range(len(above)):
        upper, lower, weight = prob[above[y]], prob[below[y]], row_weight[y]
        for x in range(before[0], after[-1] + 1):
            line[x] = upper[x] + weight * (lower[x] - upper[x])
        for x in range(len(before)):
            left = line[before[x]]
            values[y, x] = left + column_weight[x] * (line[after[x]] - left)
    mask = values > threshold
    if not mask.any():
        mask = values >= values.max() / 2
    total, count = 0.0, 0
    for y in range(len(above)):
        for x in range(len(before)):
            if mask[y, x]:
                total += values[y, x]
                count += 1
    return mask, total / count if count else np.nan  # NaN is nowhere above anything


@numba.njit(nogil=True, cache=True)
def _taps(low, high, start, stop, size):
    """What bilinear resizing from ``size`` cells to the pixels low … high reads.

    For each of the pixels start … stop the cells before and after its centre, and the weight of the
    latter, on the same half-pixel grid as torch's.
    """
    before, after = np.empty((2, stop - start), np.int32)
    weights = np.empty(stop - start, np.float32)
    for i in range(stop - start):
        place = (start - low + i + 0.5) * size / (high - low) - 0.5
        place = min(max(place, 0.0), size - 1.0)
        before[i] = int(place)
        after[i] = min(before[i] + 1, size - 1)
        weights[i] = place - before[i]
    return before, after, weights


def arrived(pred: Mapping[str, Any]) -> Mapping[str, Any]:
    """Waits until a GPU has sent what a prediction holds, and returns that prediction.

    Args:
        pred: ``pred_instances`` of :meth:`MaskAutoLabeler.predict`, or the same as a dictionary.
    """
    wait = pred.get("ready")
    if wait:
        wait()
    return pred


def mask_windows(
    pred: Mapping[str, Tensor], image_shape: tuple[int, int]
) -> Iterator[MaskWindow | None]:
    """The masks of the boxes of an image, one after the other.

    Args:
        pred: ``pred_instances`` of :meth:`MaskAutoLabeler.predict`, or the same as a dictionary.
        image_shape: Height and width of the image.

    Yields:
        A mask; None where the network's prediction is not finite.
    """
    pred = arrived(pred)
    keys = ("mask_quality", "crop_bboxes", "bboxes", "thresholds")
    fields = (pred[key].tolist() for key in keys)
    for prob, quality, *box in zip(pred["mask_probs"].numpy(), *fields):
        yield mask_window(prob, *box, image_shape) if isfinite(quality) else None


def encode_window(window: MaskWindow, image_shape: tuple[int, int]) -> dict:
    """Compressed RLE of a mask in its image, made without an array of the image's size.

    Equal to :func:`encode_mask` of the full mask: COCO's runs go down the columns of the image, so
    the window's only have to be moved and, where they touch, joined.
    """
    runs = _runs(window.mask, window.x0, window.y0, *image_shape)
    return dict(size=[*image_shape], counts=compress_runs(runs))


@numba.njit(nogil=True, cache=True)
def _runs(mask, x0, y0, height, width):
    """Lengths of runs, background first, column after column of an image of that size."""
    edges = np.empty(mask.shape[1] * (mask.shape[0] + 1) + 2, np.int64)
    edges[0], count = 0, 1
    for x in range(mask.shape[1]):
        first = (x0 + x) * height + y0
        inside = False
        for y in range(mask.shape[0] + 1):  # a run ends in its column
            now = y < mask.shape[0] and mask[y, x]
            if now != inside:
                # A run that ends at the foot of a column goes on at the head of the next.
                if count > 1 and edges[count - 1] == first + y:
                    count -= 1
                else:
                    edges[count] = first + y
                    count += 1
            inside = now
    if count == 1 or edges[count - 1] < height * width:
        edges[count] = height * width
        count += 1
    return np.diff(edges[:count])


def paste_mask(
    prob: Tensor,
    crop_bbox: Sequence[float],
    bbox: Sequence[float],
    threshold: float,
    out: Tensor,
) -> float:
    """Writes the mask of one box into the image frame.

    Args:
        prob: As in :func:`mask_window`, but a tensor.
        crop_bbox: As in :func:`mask_window`.
        bbox: As in :func:`mask_window`.
        threshold: As in :func:`mask_window`.
        out: Bool, shape (H, W), all False; changed in place.

    Returns:
        Mean probability inside the mask.
    """
    window = mask_window(prob.numpy(), crop_bbox, bbox, threshold, tuple(out.shape))
    height, width = window.mask.shape
    rows, columns = slice(window.y0, window.y0 + height), slice(window.x0, window.x0 + width)
    out[rows, columns] = torch.from_numpy(window.mask)
    return window.score
