# SPDX-License-Identifier: Apache-2.0
"""The geometry between a box, its crop and the image: pure functions, no state.

Frames and letters used throughout the package:

- image frame: continuous pixel coordinates of the original image; pixel ``i`` covers
  ``[i, i + 1)``, a bbox is ``(x0, y0, x1, y1)`` with the far corner exclusive.
- crop frame: the same, in the resized crop of S × S pixels.
- ``crop_bbox``: integer bbox in the image frame that was cut out; it may leave the image.
- N: boxes, S: side of the crop, (H, W): size of the image, (h, w): size of a mask.
"""

from __future__ import annotations

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

BORDERS = ("reflect", "wrap")


def expand_bbox(bbox: np.ndarray, margins: np.ndarray) -> np.ndarray:
    """Moves each side of a box away from the centre and rounds outward to whole pixels.

    Args:
        bbox: Shape (4,), image frame.
        margins: Shape (4,), for left, top, right, bottom: half-extents are multiplied by
            ``1 + margin``.

    Returns:
        ``crop_bbox``: int64, shape (4,), image frame, at least one pixel wide and high.
    """
    bbox = np.asarray(bbox, dtype=np.float64)
    centre = np.tile((bbox[:2] + bbox[2:]) / 2, 2)
    expanded = centre + (bbox - centre) * (1 + np.asarray(margins, dtype=np.float64))
    low = np.floor(expanded[:2]).astype(np.int64)
    high = np.ceil(expanded[2:]).astype(np.int64)
    return np.concatenate([low, np.maximum(high, low + 1)])


def border_indices(start: int, stop: int, length: int, border: str) -> np.ndarray:
    """Indices into an axis of ``length`` pixels for the positions ``start … stop − 1``.

    Positions outside the axis are mirrored at its ends (``'reflect'``, the edge pixel is not
    repeated) or taken from the opposite side (``'wrap'``), as often as needed. There is no
    constant fill on purpose: flat colour would mislead the CRF loss, which reads pixels.

    Raises:
        ValueError: Another ``border``.
    """
    positions = np.arange(start, stop)
    if border == "wrap":
        return positions % length
    if border == "reflect":
        period = max(2 * (length - 1), 1)
        positions = positions % period
        return np.minimum(positions, period - positions) if length > 1 else positions * 0
    raise ValueError(f"border is {border!r}, but must be one of {BORDERS}")


def crop_and_resize(
    img: np.ndarray, crop_bbox: np.ndarray, size: int, border: str = "reflect"
) -> np.ndarray:
    """Cuts ``crop_bbox`` out of an image and resizes it to ``size`` × ``size``.

    The aspect ratio is not kept. The resize is Pillow's antialiased bicubic, computed by PyTorch in
    a fraction of the time. Fewer than 1 % of the values are rounded another way, and a quarter of
    them in tall boxes, which Pillow scales vertically before it scales them horizontally.

    Args:
        img: uint8, shape (H, W, 3).
        crop_bbox: Integers, shape (4,), image frame.
        size: Side S of the crop in pixels.
        border: What fills the part outside the image, see :func:`border_indices`.

    Returns:
        uint8, shape (S, S, 3).

    Raises:
        ValueError: As :func:`border_indices`, if the crop reaches beyond the image.
    """
    x0, y0, x1, y1 = (int(v) for v in crop_bbox)
    height, width = img.shape[:2]
    if x0 >= 0 and y0 >= 0 and x1 <= width and y1 <= height:
        crop = np.ascontiguousarray(img[y0:y1, x0:x1])
    else:
        rows = border_indices(y0, y1, height, border)
        columns = border_indices(x0, x1, width, border)
        left = columns.min()
        crop = img[rows, left : columns.max() + 1].take(columns - left, axis=1)
    pixels = torch.from_numpy(crop).permute(2, 0, 1)[None]
    resized = F.interpolate(pixels, (size, size), mode="bicubic", antialias=True)
    return cv2.merge(list(resized[0].numpy()))  # NumPy's transposing takes as long as the resize


def bbox_to_crop(bbox: np.ndarray, crop_bbox: np.ndarray, size: int) -> np.ndarray:
    """Maps a bbox from the image frame to the crop frame, float32 of shape (4,)."""
    x0, y0, x1, y1 = crop_bbox
    scale = np.array([size / (x1 - x0), size / (y1 - y0)], dtype=np.float64)
    corners = np.asarray(bbox, dtype=np.float64).reshape(2, 2) - (x0, y0)
    return (corners * scale).reshape(4).astype(np.float32)


def resize_maps(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """Bilinear resize of (N, C, h, w) maps to a size, (h', w').

    Maps that have it come back themselves, not to be changed. PyTorch would make all values anew.
    """
    if maps.shape[2:] == size:
        return maps
    return F.interpolate(maps, size, mode="bilinear", align_corners=False)


def resize_bboxes(bboxes: Tensor, from_size: tuple[int, int], to_size: tuple[int, int]) -> Tensor:
    """Boxes (N, 4) in cells of (h, w) maps, in those of the same maps at (h', w').

    Without a tensor of factors, as mmdet's ``scale_boxes`` makes one: a GPU would be waited for.
    """
    y_scale, x_scale = (new / old for old, new in zip(from_size, to_size))
    x0, y0, x1, y1 = bboxes.unbind(1)
    return torch.stack([x0 * x_scale, y0 * y_scale, x1 * x_scale, y1 * y_scale], 1)


def resample_maps(maps: Tensor, from_bboxes: Tensor, to_bboxes: Tensor) -> Tensor:
    """What maps of some crops look like in the frames of other crops of the same boxes.

    Bilinear between the centres of cells; beyond the outermost ones a map goes on as it ends.

    Args:
        maps: Floating, shape (K, N, h, w): K maps of each crop.
        from_bboxes: Their crops, shape (N, 4), image frame.
        to_bboxes: The other crops, likewise.

    Returns:
        Shape (K, N, h, w).
    """
    origin, extent = from_bboxes[:, :2], from_bboxes[:, 2:] - from_bboxes[:, :2]
    corners = (to_bboxes - origin.tile(2)) / extent.tile(2)  # the source is 1 × 1
    places = []
    for axis, length in ((0, maps.shape[3]), (1, maps.shape[2])):
        low, high = corners[:, axis, None], corners[:, axis + 2, None]
        centres = (torch.arange(length, device=maps.device) + 0.5) / length
        places.append(2 * (low + (high - low) * centres) - 1)  # the source is from −1 to 1
    x, y = places[0][:, None, :], places[1][:, :, None]
    grid = torch.stack(torch.broadcast_tensors(x, y), 3).to(maps)
    options = dict(mode="bilinear", padding_mode="border", align_corners=False)
    return F.grid_sample(maps.transpose(0, 1), grid, **options).transpose(0, 1)


def mask_on_cells(mask: Tensor, crop_bbox: Tensor, size: tuple[int, int]) -> Tensor:
    """Brings a mask of the image to the cells of a crop's feature map by averaging areas.

    Args:
        mask: Bool, shape (H, W), image frame. Outside the image there is background.
        crop_bbox: The part of the image that the map shows, (4,), image frame.
        size: (h, w) of the map.

    Returns:
        Bool, shape (h, w): cells of which the mask covers more than half.
    """
    x0, y0, x1, y1 = crop_bbox.tolist()

    def shares(start: float, stop: float, cells: int, length: int) -> Tensor:
        edges = torch.linspace(start, stop, cells + 1, dtype=torch.float64)
        return span_coverage(edges[:-1], edges[1:], length) * (cells / (stop - start))

    rows, columns = shares(y0, y1, size[0], mask.shape[0]), shares(x0, x1, size[1], mask.shape[1])
    return rows @ mask.double() @ columns.T > 0.5


def box_masks(bboxes: Tensor, size: tuple[int, int]) -> Tensor:
    """The share of every mask cell that a box covers: the target ``t`` of both losses.

    A box mask is the outer product of two one-dimensional profiles, so it is drawn from the
    box's corners and never carried through the data pipeline as an image.

    Args:
        bboxes: Shape (N, 4), in cells of the mask.
        size: (h, w) of the mask.

    Returns:
        float32, shape (N, h, w), in [0, 1].
    """
    height, width = size
    bboxes = bboxes.float()
    columns = span_coverage(bboxes[:, 0], bboxes[:, 2], width)
    rows = span_coverage(bboxes[:, 1], bboxes[:, 3], height)
    return rows[:, :, None] * columns[:, None, :]


def span_coverage(low: Tensor, high: Tensor, length: int) -> Tensor:
    """The share of each of ``length`` cells of an axis that [low, high) covers.

    Args:
        low: Lower ends of the spans in cells, floating, shape (N,).
        high: Upper ends, likewise.
        length: Number of cells.

    Returns:
        Shape (N, length), in [0, 1], of the spans' dtype.
    """
    cells = torch.arange(length, device=low.device, dtype=low.dtype)
    covered = torch.minimum(cells + 1, high[:, None]) - torch.maximum(cells, low[:, None])
    return covered.clamp_(0, 1)
