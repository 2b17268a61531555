# SPDX-License-Identifier: Apache-2.0
"""The mean field in PyTorch's operations, for devices on which no compiled code works.

Maps are laid out as one vector, row after row and crop after crop, without the rows that are far
from the box, so that a neighbour is a fixed number of places away and a step a few multiplications
of vectors. At the border of a crop, and where the next row is missing, the place holds some other
pixel, to which the weight is 0. Rows are missing only next to such as are outside the box, and so
background whatever they are told.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

MAX_LOG_ODDS = math.log(9.0)  # x is clamped to [0.1, 0.9] after every step
MIN_WEIGHT = 1e-30  # less changes no sum, and denormal numbers would make every step slower
STEPS_BETWEEN_CHECKS = 10  # for a fixed point: the check waits for the device


def pairwise_weights(
    images: Tensor, zeta: float = 0.1, omega: float = 1.0, kernel_size: int = 3
) -> Iterator[tuple[tuple[int, int], Tensor]]:
    """Colour affinities ``K_ij = ω · exp(−|I_i − I_j|² / 2ζ²)`` of a pixel and its neighbours.

    Args:
        images: Normalised images, float, shape (B, C, h, w).
        zeta: Colour bandwidth ζ, in units of the normalised image.
        omega: Strength ω of the weights.
        kernel_size: Side of the neighbourhood: odd, at least 3.

    Yields:
        Offset (dy, dx) to the neighbour, and weights of shape (B, h, w); 0 where the neighbour is
        outside the crop. Of each offset and its opposite only the one that points ahead in
        reading order is there, since K is symmetric, and a pixel's own weight, 1, is left out.

    Raises:
        ValueError: ``kernel_size`` is even or 1; only when the first weights are asked for.
    """
    check_kernel_size(kernel_size)
    height, width = images.shape[-2:]
    radius = kernel_size // 2
    for dy in range(radius + 1):
        for dx in range(-radius, radius + 1):
            if (dy, dx) <= (0, 0):
                continue
            pixels = images[..., : max(height - dy, 0), max(-dx, 0) : max(width - max(dx, 0), 0)]
            others = images[..., dy:, max(dx, 0) : max(width + min(dx, 0), 0)]
            sides = [max(-dx, 0), max(dx, 0), 0, dy]
            weight = F.pad(_affinity(pixels, others, zeta, omega), sides)
            yield (dy, dx), weight[..., :height, :width]
            del weight  # or it would stay while the next is made


def check_kernel_size(kernel_size: int) -> None:
    """Raises ValueError where :func:`pairwise_weights` does."""
    if kernel_size < 3 or kernel_size % 2 == 0:
        raise ValueError(f"kernel_size is {kernel_size}, but must be odd and at least 3")


def _affinity(pixels: Tensor, others: Tensor, zeta: float, omega: float) -> Tensor:
    distance = (pixels - others).square_().sum(1)
    weight = distance.mul_(-1 / (2 * zeta**2)).exp_().mul_(omega)
    return F.threshold_(weight, MIN_WEIGHT, 0.0)


def torch_mean_field(
    probs: Tensor,
    box_masks: Tensor,
    images: Tensor,
    zeta: float,
    omega: float,
    kernel_size: int,
    num_steps: int,
) -> Tensor:
    """:func:`mean_field.mean_field` of maps in one precision."""
    masks = probs.new_zeros(probs.shape, dtype=torch.bool)
    radius = kernel_size // 2
    # Outside the box x is 0.1 at every step, so the box and a frame around it are enough.
    window = (slice(None), *box_window(box_masks, radius))
    if probs[window].numel():
        weights = pairwise_weights(images[(slice(None), *window)], zeta, omega, kernel_size)
        masks[window] = _iterate(probs[window], box_masks[window], weights, radius, num_steps)
    return masks


def box_window(box_masks: Tensor, margin: int) -> tuple[slice, slice]:
    """The rows and columns of a batch that hold all that is not 0, and a margin in the crop."""
    inside = (box_masks > 0).any(0)
    spans = []
    for line in (inside.any(1), inside.any(0)):
        places = line.nonzero()[:, 0].tolist()
        spans.append(
            slice(max(places[0] - margin, 0), places[-1] + 1 + margin) if places else slice(0, 0)
        )
    return spans[0], spans[1]


def _iterate(
    probs: Tensor,
    box_masks: Tensor,
    weights: Iterable[tuple[tuple[int, int], Tensor]],
    radius: int,
    num_steps: int,
) -> Tensor:
    batch, height, width = probs.shape
    rows = (box_masks > 0).any(2).float()
    rows = F.max_pool1d(rows[:, None], 2 * radius + 1, 1, radius).flatten().nonzero()[:, 0]
    margin = radius * (width + 1)
    inside = slice(margin, margin + len(rows) * width)

    def lay_out(maps: Tensor) -> Tensor:
        return F.pad(maps.flatten(0, 1)[rows].flatten(), [margin, margin])

    log_odds = lay_out((probs * box_masks).clamp(0.1, 0.9).logit())
    log_box = lay_out(box_masks.log())  # −inf outside the box: clamped to the background below
    offsets, laid_out = [], log_odds.new_zeros((2 * radius + 1) ** 2 // 2, len(log_odds))
    for ((dy, dx), weight), vector in zip(weights, laid_out):
        # Where the row ahead is not the next one here, the next may be another crop's first.
        ahead = rows[dy:]
        follows = F.pad(ahead - rows[: len(ahead)] == dy, [0, len(rows) - len(ahead)])
        vector[inside] = weight.flatten(0, 1)[rows].mul_(follows[:, None]).flatten()
        offsets.append(dy * width + dx)
    log_odds = _steps(log_odds, log_box, laid_out, offsets, inside, num_steps)
    masks = rows.new_zeros(batch * height, width, dtype=torch.bool)
    masks[rows] = log_odds[inside].view(-1, width) > 0
    return masks.view(batch, height, width)


def _steps(
    log_odds: Tensor,
    log_box: Tensor,
    weights: Tensor,
    offsets: list[int],
    inside: slice,
    num_steps: int,
) -> Tensor:
    """Mean-field steps on maps that are laid out as vectors of L places.

    Args:
        log_odds: λ, shape (L,), 0 in the margins at both ends. Is changed.
        log_box: log t, shape (L,).
        weights: Of pixels and their neighbours ahead, shape (K, L), 0 in the margins.
        offsets: Places from a pixel to its K neighbours ahead, none longer than a margin.
        inside: Places between the margins.
        num_steps: Number of steps.

    Returns:
        λ after them, shape (L,).
    """

    def at(vector: Tensor, offset: int = 0) -> Tensor:
        return vector[inside.start + offset : inside.stop + offset]

    other = torch.zeros_like(log_odds)
    for step in range(num_steps):
        update = torch.add(at(log_odds), at(log_box), out=at(other))
        for offset, weight in zip(offsets, weights):
            update.addcmul_(at(weight), at(log_odds, offset))
            update.addcmul_(at(weight, -offset), at(log_odds, -offset))
        update.clamp_(-MAX_LOG_ODDS, MAX_LOG_ODDS)
        log_odds, other = other, log_odds
        if (step + 1) % STEPS_BETWEEN_CHECKS == 0 and torch.equal(log_odds, other):
            break
    return log_odds
