# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from torch import Tensor


def dice_distance(a: Tensor, b: Tensor, eps: float = 1e-3) -> Tensor:
    """``1 − 2 Σ ab / (Σ a² + Σ b²)`` over all but the first dimension (paper, Sec. 3.4).

    Args:
        a, b: Same shape (B, ...).
        eps: Added to each of the two sums of squares.

    Returns:
        Shape (B,).
    """
    a, b = a.flatten(1), b.flatten(1)
    overlap = (a * b).sum(1)
    return 1 - 2 * overlap / ((a * a).sum(1) + eps + (b * b).sum(1) + eps)
