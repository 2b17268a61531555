# SPDX-License-Identifier: Apache-2.0
"""Mean field of the CRF loss: pixels of like colour pull their neighbours to one label.

Letters: B crops, (h, w) mask resolution, k kernel size, j the offset of a neighbour.

The method states one step for both labels c: ``a_c = t_c · exp(Σ_j K_ij log x_c,j)``, then
``x = a_1 / (a_0 + a_1)``. In log-odds ``λ = log(x / (1 − x))`` both sums collapse into one,
``λ_i ← Σ_j K_ij λ_j + log t_i``, a single-channel stencil; clamping x to [0.1, 0.9] is clamping
λ to ±log 9. The 1e-6 that the original adds to the denominator is left out. With the method's
ω and k it only moves near-ties to the background; with stronger weights, where ``a_0 + a_1`` is far
below it, it would make nearly everything background.

Maps are laid out as one vector, row after row and crop after crop, without the rows that are far
from the box, so that a neighbour is a fixed number of places away. At the border of a crop, and
where the next row is missing, the place holds some other pixel, to which the weight is 0. Rows are
missing only next to such as are outside the box, and so background whatever they are told. On a
CPU compiled code takes one crop through all steps while it is in a core's cache; elsewhere a step
is a few multiplications of vectors, for all crops at once. NVIDIA GPUs have a kernel of their own
for all of it.
"""

from __future__ import annotations

import functools
import itertools
import logging
import math
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor

import numba
import numpy as np
import torch
import torch.nn.functional as F
from mmengine.logging import print_log
from torch import Tensor

MAX_LOG_ODDS = math.log(9.0)  # x is clamped to [0.1, 0.9] after every step
STEPS_BETWEEN_CHECKS = 10  # for a fixed point: the check waits for the device
BLOCK = 256  # places that compiled code works on at once


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
    _check(kernel_size)
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


def _check(kernel_size: int) -> None:
    if kernel_size < 3 or kernel_size % 2 == 0:
        raise ValueError(f"kernel_size is {kernel_size}, but must be odd and at least 3")


def _affinity(pixels: Tensor, others: Tensor, zeta: float, omega: float) -> Tensor:
    distance = (pixels - others).square_().sum(1)
    weight = distance.mul_(-1 / (2 * zeta**2)).exp_().mul_(omega)
    # Denormal numbers would make every step slower and no sum different.
    return F.threshold_(weight, 1e-30, 0.0)


@torch.compiler.disable  # its steps are compiled by other means, or in place on vectors
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
        probs: Starting point q, shape (B, h, w), in [0, 1]. Half precision is computed in float32.
        box_masks: t, shape (B, h, w), in [0, 1]; outside the box nothing is foreground.
        images: Normalised images at mask resolution, shape (B, C, h, w).
        zeta, omega, kernel_size: See :func:`pairwise_weights`.
        num_steps: Number of steps; iteration ends earlier only at an exact fixed point.

    Returns:
        Bool masks l of shape (B, h, w).

    Raises:
        ValueError: ``kernel_size`` is even or 1.
    """
    _check(kernel_size)
    dtype = torch.promote_types(probs.dtype, torch.float32)
    probs, box_masks, images = (maps.to(dtype) for maps in (probs, box_masks, images))
    kernel = gpu_kernel(probs, kernel_size)
    if kernel:
        return kernel(probs, box_masks, images, zeta, omega, kernel_size, num_steps)
    masks = probs.new_zeros(probs.shape, dtype=torch.bool)
    # Outside the box x is 0.1 at every step, so the box and a frame around it are enough.
    window = (slice(None), *box_window(box_masks, kernel_size // 2))
    if probs[window].numel():
        weights = pairwise_weights(images[(slice(None), *window)], zeta, omega, kernel_size)
        masks[window] = _iterate(
            probs[window], box_masks[window], weights, kernel_size // 2, num_steps
        )
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
    # Places of the vectors at which crops begin, and the last one ends.
    bounds = torch.searchsorted(rows, torch.arange(batch + 1, device=rows.device) * height)
    bounds = (margin + bounds * width).tolist()
    inside = slice(bounds[0], bounds[-1])

    def lay_out(maps: Tensor) -> Tensor:
        return F.pad(maps.flatten(0, 1)[rows].flatten(), [margin, margin])

    log_odds = lay_out((probs * box_masks).clamp(0.1, 0.9).logit())
    log_box = lay_out(box_masks.log())  # −inf outside the box: clamped to the background below
    offsets, laid_out = [], log_odds.new_zeros((2 * radius + 1) ** 2 // 2, len(log_odds))
    for ((dy, dx), weight), vector in zip(weights, laid_out):
        # Where the row ahead is not the next one here, the next may be another crop's first.
        follows = F.pad(rows[dy:] - rows[: len(rows) - dy] == dy, [0, dy])
        vector[inside] = weight.flatten(0, 1)[rows].mul_(follows[:, None]).flatten()
        offsets.append(dy * width + dx)
    steps = compiled_steps if probs.device.type == "cpu" else torch_steps
    log_odds = steps(log_odds, log_box, laid_out, offsets, bounds, num_steps)
    masks = rows.new_zeros(batch * height, width, dtype=torch.bool)
    masks[rows] = log_odds[inside].view(-1, width) > 0
    return masks.view(batch, height, width)


def gpu_kernel(probs: Tensor, kernel_size: int) -> Callable[..., Tensor] | None:
    """``triton_mean_field`` for maps on an NVIDIA GPU on which Triton works and that is no toy.

    The programs of a crop wait for each other, so all of them have to be at work at once, also
    beside another such kernel.
    """
    if probs.device.type != "cuda" or torch.version.hip or not triton_works(probs.device):
        return None
    from .mean_field_triton import num_blocks, triton_mean_field

    processors = torch.cuda.get_device_properties(probs.device).multi_processor_count
    return triton_mean_field if 2 * num_blocks(probs, kernel_size) <= processors else None


@functools.cache
def triton_works(device: torch.device) -> bool:
    """Whether a kernel can be compiled and run there; warns if not."""
    try:
        from .mean_field_triton import triton_mean_field

        images = torch.zeros(1, 3, 4, 4, device=device)
        # Compiles, which needs a C compiler, and waits for the kernel.
        triton_mean_field(images[:, 0], images[:, 0], images, 0.1, 1.0, 3, 1).any().item()
    except torch.OutOfMemoryError:  # says nothing about Triton
        raise
    except Exception as error:  # Triton's, the compiler's or the driver's
        print_log(
            f"The mean field runs in PyTorch's operations, which is slow: Triton does not work on "
            f"{device} ({type(error).__name__}: {error}). It needs a C compiler and the headers of "
            "Python.",
            logger="current",
            level=logging.WARNING,
        )
        return False
    return True


def torch_steps(
    log_odds: Tensor,
    log_box: Tensor,
    weights: Tensor,
    offsets: list[int],
    bounds: list[int],
    num_steps: int,
) -> Tensor:
    """Mean-field steps on maps that are laid out as vectors of L places.

    Args:
        log_odds: λ, shape (L,), 0 in the margins at both ends. Is changed.
        log_box: log t, shape (L,).
        weights: Of pixels and their neighbours ahead, shape (K, L), 0 in the margins.
        offsets: Places from a pixel to its K neighbours ahead, none longer than a margin.
        bounds: Places at which crops begin, and the last one ends.
        num_steps: Number of steps.

    Returns:
        λ after them, shape (L,).
    """
    first, last = bounds[0], bounds[-1]

    def at(vector: Tensor, offset: int = 0) -> Tensor:
        return vector[first + offset : last + offset]

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


def compiled_steps(
    log_odds: Tensor,
    log_box: Tensor,
    weights: Tensor,
    offsets: list[int],
    bounds: list[int],
    num_steps: int,
) -> Tensor:
    """:func:`torch_steps` on CPU cores, compiled at the first call."""
    vectors = [x.numpy() for x in (log_odds, torch.zeros_like(log_odds), log_box, weights)]
    settings = np.array(offsets), num_steps, vectors[0].dtype.type(MAX_LOG_ODDS)
    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        # Crops have nothing to do with each other; what one sees of the next has the weight 0,
        # which only a NaN would survive.
        crops = itertools.pairwise(bounds)
        list(pool.map(lambda crop: _crop_steps(*vectors, *settings, *crop), crops))
    return log_odds


@numba.njit(nogil=True)
def _crop_steps(log_odds, other, log_box, weights, offsets, num_steps, limit, first, last):
    now, then = log_odds, other
    update = np.empty(BLOCK, log_odds.dtype)
    for step in range(num_steps):
        for start in range(first, last, BLOCK):
            stop = min(start + BLOCK, last)
            # LLVM makes vector instructions of such loops.
            old, prior = now[start:stop], log_box[start:stop]
            for i in range(len(old)):
                update[i] = old[i] + prior[i]
            for k, offset in enumerate(offsets):
                ahead, behind = weights[k, start:stop], weights[k, start - offset : stop - offset]
                after = now[start + offset : stop + offset]
                before = now[start - offset : stop - offset]
                for i in range(len(ahead)):
                    update[i] += ahead[i] * after[i] + behind[i] * before[i]
            new = then[start:stop]
            for i in range(len(new)):
                new[i] = min(max(update[i], -limit), limit)
        now, then = then, now
        if (step + 1) % STEPS_BETWEEN_CHECKS == 0 and np.array_equal(
            now[first:last], then[first:last]
        ):
            break
    log_odds[first:last] = now[first:last]
