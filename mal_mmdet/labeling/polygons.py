# SPDX-License-Identifier: Apache-2.0
"""Masks as polygons, for what cannot read RLE."""

from __future__ import annotations

import re
from typing import Any

import cv2
import numpy as np
from pycocotools import mask as mask_utils

from .coco_file import is_finite
from .rle import decompress_runs

FARTHEST = 4  # a corner may lie so many sides of the image away
LONGEST = 1e6  # pixels along all outlines of a mask; pycocotools keeps dozens of bytes for each
# The runs of a compressed RLE: five bits and a flag that more follow to a character. After 30 bits
# pycocotools loses some.
COMPRESSED = r"(?:[P-o]{0,5}[0-O])+"
UNREADABLE = "its mask is no RLE of the pixels of its image"
MIN_IOU = 0.98
# Pixels, tried in this order. One pixel makes stairs straight; 0.6 only takes corners of one pixel
# away, which hardly a centre of a pixel notices.
TOLERANCES = (1.0, 0.6)
# A cut runs beside the centres and edges of pixels, so that no reader has to decide on a tie. It
# is not quite closed: mmdet's crops repair polygons with `buffer(0)`, which closes a cut without
# width and fills the hole.
CUT_OFFSET, CUT_WIDTH = 0.25, 0.01


def mask_problem(segmentation: Any, image: dict[str, Any]) -> str | None:
    """What keeps stock loaders from reading a mask; None if nothing does.

    pycocotools, which they use, takes an RLE on trust, and reads memory that is not its own; for a
    long outline it takes memory without asking whether there is any.

    Args:
        segmentation: From a COCO file: polygons, or RLE, compressed or not.
        image: The entry of its image, sound in the eyes of :func:`find_problems`.
    """
    height, width = size = [image["height"], image["width"]]
    if isinstance(segmentation, list) and segmentation:
        reach = FARTHEST * max(size)
        for polygon in segmentation:
            numbers = isinstance(polygon, list) and all(map(is_finite, polygon))
            if not numbers or not all(-reach < v < reach for v in polygon):
                return f"expected polygons [x, y, …] in and around the image, found {polygon!r:.80}"
        length = sum(map(_length, whole_polygons(segmentation)))
        if length > LONGEST:
            return f"its outlines are {length:.0f} pixels long, more than {LONGEST:.0f}"
        if not whole_polygons(segmentation):
            return f"expected polygons of at least three points, found {segmentation!r:.80}"
        return None
    if not isinstance(segmentation, dict) or not segmentation.keys() >= {"size", "counts"}:
        return (
            f"expected a mask, polygons or RLE, as tools/generate_labels.py writes them, found "
            f"{segmentation!r:.80}"
        )
    if segmentation["size"] != size:
        return (
            f"expected a mask of the size {size} of its image, found {segmentation['size']!r:.40}"
        )
    counts = segmentation["counts"]
    area = height * width
    if isinstance(counts, str) and re.fullmatch(COMPRESSED, counts):
        runs = decompress_runs(counts)
        # Runs of the image's pixels at most: more of them might overflow to the right sum.
        sound = runs.min() >= 0 and runs.max() <= area and runs.sum() == area
    else:
        listed = isinstance(counts, list) and all(type(run) is int and run >= 0 for run in counts)
        sound = listed and sum(counts) == area
    return None if sound else UNREADABLE


def mask_bbox(segmentation: list | dict, image: dict[str, Any]) -> list[float]:
    """The box [x, y, width, height] around a mask in which :func:`mask_problem` finds nothing."""
    return mask_utils.toBbox(to_rle(segmentation, image["height"], image["width"])).tolist()


def whole_polygons(polygons: list[list[float]]) -> list[list[float]]:
    """Those polygons of COCO's format that have three points or more; loaders skip the others."""
    return [polygon for polygon in polygons if len(polygon) >= 6 and len(polygon) % 2 == 0]


def _length(polygon: list[float]) -> float:
    """What pycocotools walks along an outline: of each edge the longer of its two extents."""
    points = np.reshape(polygon, (-1, 2))
    return float(np.abs(points - np.roll(points, 1, axis=0)).max(1).sum()) + len(points)


def mask_to_polygons(mask: np.ndarray) -> list[list[float]]:
    """The outlines of a mask as polygons of COCO's format.

    Outlines run along the edges of pixels: pixel (row i, column j) is the square from (j, i) to
    (j + 1, i + 1). Each part, whose pixels touch by an edge or a corner, is one polygon. COCO's
    polygons have no holes, so a cut of 0.01 pixels leads from each hole up to the outline above
    it. Stairs are smoothed as far as an IoU of 0.98 allows; small outlines are mostly exact.

    Args:
        mask: Bool or uint8, shape (H, W).

    Returns:
        A flat list [x, y, x, y, …] per part, pixels, at least 8 numbers long; none of an empty
        mask. Rasterised by pycocotools they have an IoU of at least 0.98 with the mask.
    """
    mask = np.ascontiguousarray(mask, dtype=np.uint8)
    left, top, width, height = cv2.boundingRect(mask)
    if not width:
        return []
    polygons = _outlines(mask[top : top + height, left : left + width])
    # Floats always: mmdet scales the numbers in place.
    return [np.round(np.add(p, (left, top)), 3).astype(float).ravel().tolist() for p in polygons]


def join_parts(polygons: list[list[float]]) -> list[float]:
    """One polygon for several parts, joined by lines without width between nearest corners.

    For formats that have one polygon per object. By the even-odd rule the lines cover nothing.

    Args:
        polygons: Flat lists [x, y, …], at least one.

    Returns:
        A flat list [x, y, …].
    """
    joined, *others = (np.reshape(polygon, (-1, 2)) for polygon in polygons)
    for other in others:
        distances = ((joined[:, None] - other) ** 2).sum(2)
        i, j = np.unravel_index(distances.argmin(), distances.shape)
        there = np.roll(other, -j, axis=0)
        joined = np.concatenate([joined[: i + 1], there, there[:1], joined[i:]])
    return joined.ravel().tolist()


def to_rle(segmentation: list | dict, height: int, width: int) -> dict:
    """Any mask of COCO's format (polygons, RLE, compressed RLE) as compressed RLE.

    Args:
        segmentation: In which :func:`mask_problem` finds nothing.
        height: Of the image.
        width: Likewise.
    """
    if isinstance(segmentation, list):
        polygons = whole_polygons(segmentation)
        return mask_utils.merge(mask_utils.frPyObjects(polygons, height, width))
    if isinstance(segmentation["counts"], list):
        return mask_utils.frPyObjects(segmentation, height, width)
    return segmentation


def segmentation_to_mask(segmentation: list | dict, height: int, width: int) -> np.ndarray:
    """Any mask of COCO's format as uint8, shape (H, W)."""
    return mask_utils.decode(to_rle(segmentation, height, width))


def _outlines(mask: np.ndarray) -> list[np.ndarray]:
    """The outline of each part, holes cut, (N, 2); as smooth as the IoU allows."""
    parts = _trace(mask)
    for tolerance in TOLERANCES:
        smooth = _cut([[_simplify(ring, tolerance) for ring in rings] for rings in parts])
        if smooth is not None and _iou(smooth, mask > 0) >= MIN_IOU:
            return smooth
    return _cut(parts)


def _iou(polygons: list[np.ndarray], mask: np.ndarray) -> float:
    """The least IoU among readers that decide ties at the centres of pixels differently.

    A smoothed diagonal runs through such centres. Moved by 0.2 pixels, one step of
    pycocotools' grid, to the left or the right, it has all of them on one side; where it is, some
    on either.
    """
    ious = []
    for shift in (-0.2, 0.0, 0.2):
        moved = [np.add(polygon, (shift, 0)).ravel().tolist() for polygon in polygons]
        drawn = segmentation_to_mask(moved, *mask.shape) > 0
        ious.append((drawn & mask).sum() / (drawn | mask).sum())
    return min(ious)


def _trace(mask: np.ndarray) -> list[list[np.ndarray]]:
    """Per part its outline and those of its holes, (N, 2) corners of pixels, int32.

    OpenCV runs through the centres of border pixels. In a mask of twice the size, every pixel
    has one border pixel at each of its corners; halved and rounded up, they are the corners.
    """
    large = mask.repeat(2, axis=0).repeat(2, axis=1)
    contours, tree = cv2.findContours(large, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
    parents = tree[0, :, 3].tolist()  # -1 of outlines, of a hole the number of its outline
    parts = {i: [] for i, parent in enumerate(parents) if parent < 0}
    for i in sorted(range(len(contours)), key=parents.__getitem__):  # outlines before holes
        ring = _drop_needless((contours[i][:, 0] + 1) // 2)
        parts[i if parents[i] < 0 else parents[i]].append(ring)
    return list(parts.values())


def _drop_needless(ring: np.ndarray) -> np.ndarray:
    """The ring without points that repeat the one before, or lie on a straight line."""
    ring = ring[(ring != np.roll(ring, 1, axis=0)).any(1)]
    before, after = ring - np.roll(ring, 1, axis=0), np.roll(ring, -1, axis=0) - ring
    return ring[before[:, 0] * after[:, 1] != before[:, 1] * after[:, 0]]


def _simplify(ring: np.ndarray, tolerance: float) -> np.ndarray:
    simple = cv2.approxPolyDP(ring[:, None], tolerance, closed=True)[:, 0]
    return simple if len(simple) > 2 else ring


def _cut(parts: list[list[np.ndarray]]) -> list[np.ndarray] | None:
    """Each part with cuts to its holes, (N, 2); None where smoothing crossed outlines."""
    polygons = []
    for outline, *holes in parts:
        # What lies above a hole begins above it too: in this order it is a piece of the outline.
        for hole in sorted(holes, key=lambda ring: ring[:, 1].min()):
            outline = _cut_hole(outline, hole)
            if outline is None:
                return None
        polygons.append(outline)
    return polygons


def _cut_hole(outline: np.ndarray, hole: np.ndarray) -> np.ndarray | None:
    """Goes up from the hole's top to the outline, around the hole in between."""
    top_x, _ = min(hole.tolist(), key=lambda point: point[::-1])
    x = top_x + CUT_OFFSET  # beside the corner; to the right of it if the hole is there
    if not hole[:, 0].max() > x:
        x = top_x - CUT_OFFSET
    start, height = _crossings(hole, x)
    first = height.argmin()
    stop, above = _crossings(outline, x)
    above = np.where(above < height[first], above, -np.inf)
    if not np.isfinite(above).any():
        return None
    last = above.argmax()
    around = np.roll(hole, -start[first] - 1, axis=0)  # from behind the cut to before it
    sides = np.array([x, x + CUT_WIDTH])
    at_hole = np.stack([sides, _height(around[-1], around[0], sides)], axis=1)
    here, there = outline[stop[last]], outline[(stop[last] + 1) % len(outline)]
    at_outline = np.stack([sides, _height(here, there, sides)], axis=1)
    if here[0] > there[0]:
        at_outline = at_outline[::-1]
    if around[-1][0] < around[0][0]:  # around begins to the right of the cut
        at_hole = at_hole[::-1]
    pieces = outline[: stop[last] + 1], at_outline[:1], at_hole[:1]
    return np.concatenate([*pieces, around, at_hole[1:], at_outline[1:], outline[stop[last] + 1 :]])


def _crossings(ring: np.ndarray, x: float) -> tuple[np.ndarray, np.ndarray]:
    """Where a ring crosses a vertical line: numbers of the edges and heights."""
    after = np.roll(ring, -1, axis=0)
    (edges,) = np.nonzero((ring[:, 0] < x) != (after[:, 0] < x))
    return edges, _height(ring[edges].T, after[edges].T, x)


def _height(start: np.ndarray, stop: np.ndarray, x: float | np.ndarray) -> np.ndarray:
    """Height at ``x`` of lines that are not vertical."""
    return start[1] + (x - start[0]) * (stop[1] - start[1]) / (stop[0] - start[0])
