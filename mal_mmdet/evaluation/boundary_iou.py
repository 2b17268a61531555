# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import cv2
import numpy as np


def boundary_iou(mask_a: np.ndarray, mask_b: np.ndarray, dilation_ratio: float = 0.02) -> float:
    """IoU of the boundary regions of two masks (Boundary IoU, Cheng et al., CVPR 2021).

    A mask's boundary region is those of its pixels that have a pixel of the background, or of
    the outside of the image, within the distance d (chessboard metric, as in the original).

    Args:
        mask_a: Bool, shape (H, W), the whole image.
        mask_b: Likewise.
        dilation_ratio: d as a share of the image's diagonal; d is rounded to whole pixels and
            at least 1.

    Returns:
        In [0, 1]; 0 for two empty masks.

    Raises:
        ValueError: The masks are not of one shape (H, W).
    """
    if mask_a.shape != mask_b.shape or mask_a.ndim != 2:
        raise ValueError(
            f"masks have the shapes {mask_a.shape} and {mask_b.shape}, expected one shape (H, W)"
        )
    distance = max(1, round(dilation_ratio * float(np.hypot(*mask_a.shape))))
    either = mask_a | mask_b
    rows, columns = either.any(1).nonzero()[0], either.any(0).nonzero()[0]
    if not len(rows):
        return 0.0
    # Beyond the masks' bounding box there is only background, which is what the erosion takes
    # the outside of the window for: the window gives what the whole image would.
    window = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
    a, b = (_boundary(mask[window], distance) for mask in (mask_a, mask_b))
    return float((a & b).sum() / (a | b).sum())


def _boundary(mask: np.ndarray, distance: int) -> np.ndarray:
    square = np.ones((2 * distance + 1, 2 * distance + 1), dtype=np.uint8)
    inner = cv2.erode(
        np.ascontiguousarray(mask, dtype=np.uint8),
        square,
        borderType=cv2.BORDER_CONSTANT,
        borderValue=0,
    )
    return mask & (inner == 0)
