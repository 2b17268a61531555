# SPDX-License-Identifier: Apache-2.0
"""Mean field of the CRF loss: pixels of like colour pull their neighbours to one label.

Letters: B crops, (h, w) mask resolution, k kernel size, j the offset of a neighbour.

The method states one step for both labels c: ``a_c = t_c · exp(Σ_j K_ij log x_c,j)``, then
``x = a_1 / (a_0 + a_1)``. In log-odds ``λ = log(x / (1 − x))`` both sums collapse into one,
``λ_i ← Σ_j K_ij λ_j + log t_i``, a single-channel stencil; clamping x to [0.1, 0.9] is clamping
λ to ±log 9. The 1e-6 that the original adds to the denominator, which only moves exact
near-ties to the background, is left out.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

MAX_LOG_ODDS = math.log(9.0)  # x is clamped to [0.1, 0.9] after every step


def neighbours(maps: Tensor, kernel_size: int) -> list[Tensor]:
    """The k² views of zero-padded maps: view j holds at pixel i the neighbour at offset j.

    Args:
        maps: Shape (..., h, w).
        kernel_size: Odd side of the neighbourhood.

    Returns:
        k² views of shape (..., h, w), row by row; the middle one equals ``maps``.
    """
    height, width = maps.shape[-2:]
    padded = F.pad(maps, [kernel_size // 2] * 4)
    return [
        padded[..., dy : dy + height, dx : dx + width]
        for dy in range(kernel_size)
        for dx in range(kernel_size)
    ]


def pairwise_weights(
    images: Tensor, zeta: float = 0.1, omega: float = 1.0, kernel_size: int = 3
) -> Tensor:
    """Colour affinities ``K_ij = ω · exp(−|I_i − I_j|² / 2ζ²)``; a pixel's own weight is 1.

    Args:
        images: Normalised images, float, shape (B, C, h, w).
        zeta: Colour bandwidth ζ, in units of the normalised image.
        omega: Strength ω of the off-centre weights.
        kernel_size: Odd side of the neighbourhood.

    Returns:
        Shape (k², B, h, w). Weights towards neighbours outside the crop are meaningless and
        must meet a zero there, as they do in :func:`mean_field`.
    """
    if kernel_size % 2 == 0:
        raise ValueError(f"kernel_size is {kernel_size}, but must be odd")
    weights = torch.stack(
        [
            torch.exp((images - other).square().sum(1) / (-2 * zeta**2)) * omega
            for other in neighbours(images, kernel_size)
        ]
    )
    weights[kernel_size**2 // 2] = 1
    return weights


@torch.no_grad()
def mean_field(
    probs: Tensor,
    box_masks: Tensor,
    images: Tensor,
    zeta: float = 0.1,
    omega: float = 1.0,
    kernel_size: int = 3,
    num_steps: int = 100,
) -> Tensor:
    """Refines probabilities into hard masks that follow the image's edges (paper, Sec. 3.4).

    Args:
        probs: Starting point q, shape (B, h, w), in [0, 1].
        box_masks: t, shape (B, h, w), in [0, 1]; outside the box nothing is foreground.
        images: Normalised images at mask resolution, shape (B, C, h, w).
        zeta, omega, kernel_size: See :func:`pairwise_weights`.
        num_steps: Number of steps; iteration ends earlier only at an exact fixed point.

    Returns:
        Bool masks l of shape (B, h, w).
    """
    weights = pairwise_weights(images, zeta, omega, kernel_size)
    log_box = box_masks.log()  # −inf outside the box: clamped to the background below
    log_odds = (probs * box_masks).clamp(0.1, 0.9).logit()
    for step in range(num_steps):
        update = log_box.clone()
        for weight, other in zip(weights, neighbours(log_odds, kernel_size)):
            update.addcmul_(weight, other)
        update.clamp_(-MAX_LOG_ODDS, MAX_LOG_ODDS)
        # The test waits for the device, so it is not made at every step.
        if step % 10 == 9 and torch.equal(update, log_odds):
            break
        log_odds = update
    return log_odds > 0
