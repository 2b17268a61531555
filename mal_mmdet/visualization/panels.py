# SPDX-License-Identifier: Apache-2.0
"""What all pictures of boxes are made of: square panels, tiles of panels, sheets of tiles."""

from __future__ import annotations

from collections.abc import Sequence

import mmcv
import numpy as np
from mmdet.visualization import DetLocalVisualizer
from torch import Tensor

GREEN, ORANGE, BLUE = (60, 220, 60), (255, 140, 0), (60, 120, 255)


def crop_to_image(crop: Tensor, bgr: bool, size: int) -> np.ndarray:
    """A packed crop as a picture.

    Args:
        crop: uint8, shape (3, S, S).
        bgr: Whether its channels are in BGR order.
        size: Side of the picture in pixels.

    Returns:
        uint8 RGB, shape (size, size, 3).
    """
    pixels = crop.flip(0) if bgr else crop
    image = pixels.permute(1, 2, 0).cpu().numpy()
    return mmcv.imresize(np.ascontiguousarray(image), (size, size), backend="pillow")


def draw_panel(
    visualizer: DetLocalVisualizer,
    image: np.ndarray,
    bbox: np.ndarray | None = None,
    mask: np.ndarray | None = None,
    colour: tuple[int, int, int] = GREEN,
    text: str = "",
) -> np.ndarray:
    """Draws a box, a mask and a text on an image.

    Args:
        visualizer: Its canvas is used and left with this panel.
        image: uint8 RGB, shape (H, W, 3).
        bbox: (4,), in the image's pixels.
        mask: Bool, shape (H, W).
        colour: RGB of box and mask.
        text: Written into the upper left corner.

    Returns:
        uint8 RGB, shape (H, W, 3).
    """
    visualizer.set_image(image)
    if mask is not None:
        visualizer.draw_binary_masks(mask, colors=colour, alphas=0.6)
    if bbox is not None:
        corners = np.tile(image.shape[1::-1], 2) - 1
        visualizer.draw_bboxes(np.clip(bbox, 0, corners)[None], edge_colors=colour)
    if text:
        visualizer.draw_texts(
            text,
            np.array([3, 3]),
            font_sizes=11,
            colors="white",
            bboxes=dict(facecolor="black", alpha=0.6, pad=1, edgecolor="none"),
        )
    return visualizer.get_image()


def arrange(tiles: Sequence[Sequence[np.ndarray]], columns: int) -> np.ndarray:
    """Joins panels to tiles and tiles to a sheet, on white.

    Args:
        tiles: Panels of each tile, from left to right; uint8, shape (S, S, 3) each, as many in
            every tile.
        columns: Tiles side by side.

    Returns:
        uint8, shape (R, W, 3).
    """
    joined = [
        np.pad(np.hstack(panels), ((2, 2), (4, 4), (0, 0)), constant_values=255) for panels in tiles
    ]
    while len(joined) % columns:
        joined.append(np.full_like(joined[0], 255))
    rows = [np.hstack(joined[i : i + columns]) for i in range(0, len(joined), columns)]
    return np.vstack(rows)
