# SPDX-License-Identifier: Apache-2.0
"""The mean field as one kernel, for NVIDIA GPUs (:func:`mean_field.gpu_kernel`).

The pixels of a crop's box, row after row, are divided among programs of ``BLOCK`` pixels, which
keep pairwise weights, priors and log-odds in registers through all steps. What a step hands on are
the log-odds alone, through the caches, in two maps that take turns; the programs of a crop wait for
each other before each step.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from .mean_field_torch import MAX_LOG_ODDS

NUM_WARPS = 16
LOADS = 2**14  # log-odds that a program reads in a step: 32 for each of its threads


@triton.jit(do_not_specialize=["first_stage", "stop_stage"])
def mean_field_kernel(
    probs,
    box_masks,
    images,
    states,
    counters,
    masks,
    turn,
    height,
    width,
    channels,
    first_stage,
    stop_stage,
    ZETA: tl.constexpr,
    OMEGA: tl.constexpr,
    LIMIT: tl.constexpr,
    SIDE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Takes a block of a crop's box through stages: 0 is its log-odds, each further one a step.

    ``counters[0]`` deals out blocks, and ``counters[1 + b]`` counts how often the programs of crop
    b have finished a stage. Blocks are taken in the order in which programs start, so that those
    of the first unfinished crop are at work, or will be before any other.
    """
    size = height * width
    block = tl.atomic_add(counters, 1) % tl.num_programs(0)
    blocks = tl.cdiv(size, BLOCK)
    crop = (block // blocks).to(tl.int64)
    start = block % blocks * BLOCK
    counter = counters + 1 + crop
    box_masks += crop * size
    lane = tl.arange(0, BLOCK)

    # The rows and columns in which the box lies.
    top, left = tl.full([BLOCK], height, tl.int32), tl.full([BLOCK], width, tl.int32)
    bottom, right = tl.full([BLOCK], -1, tl.int32), tl.full([BLOCK], -1, tl.int32)
    for chunk in range(0, size, BLOCK):
        place = chunk + lane
        inside = tl.load(box_masks + place, place < size, other=0.0) > 0
        row, column = place // width, place % width
        top = tl.where(inside & (row < top), row, top)
        left = tl.where(inside & (column < left), column, left)
        bottom = tl.where(inside & (row > bottom), row, bottom)
        right = tl.where(inside & (column > right), column, right)
    top, left, bottom, right = tl.min(top, 0), tl.min(left, 0), tl.max(bottom, 0), tl.max(right, 0)
    box_width = tl.maximum(right - left + 1, 1)
    count = (bottom - top + 1) * box_width

    if start < count:
        i = start + lane
        here = i < count
        row, column = top + i // box_width, left + i % box_width
        place = row * width + column
        prior = tl.log(tl.load(box_masks + place, here, other=1.0))

        images += crop * channels * size
        weights = ()
        for k in tl.static_range(SIDE * SIDE):
            if k != SIDE * SIDE // 2:  # the pixel itself is none of its neighbours
                y, x = row + (k // SIDE - SIDE // 2), column + (k % SIDE - SIDE // 2)
                in_crop = here & (y >= 0) & (y < height) & (x >= 0) & (x < width)
                distance = tl.full([BLOCK], 0.0, prior.dtype)
                for channel in range(channels):
                    plane = images + channel * size
                    difference = tl.load(plane + place, here, other=0.0)
                    difference -= tl.load(plane + y * width + x, in_crop, other=0.0)
                    distance += difference * difference
                weight = tl.where(in_crop, OMEGA * tl.exp(distance * (-0.5 / (ZETA * ZETA))), 0.0)
                # Outside the box pixels stay background: what they add is the same in all steps.
                in_box = (y >= top) & (y <= bottom) & (x >= left) & (x <= right)
                prior -= LIMIT * tl.where(in_box, 0.0, weight)
                weights += (tl.where(in_box, weight, 0.0),)

        state = states + crop * size + i
        if first_stage == 0:
            prob = tl.load(probs + crop * size + place, here, other=0.5)
            prob *= tl.load(box_masks + place, here, other=1.0)
            prob = tl.minimum(tl.maximum(prob, 0.1), 0.9)
            log_odds = tl.log(prob / (1 - prob))
            tl.store(state, log_odds, here)
            tl.debug_barrier()  # all threads have stored before the program says so
            tl.atomic_add(counter, 1, sem="release")
        else:
            log_odds = tl.load(state + (first_stage - 1) % 2 * turn, here, other=0.0)
        states += crop * size
        for stage in range(tl.maximum(first_stage, 1), stop_stage):
            while tl.atomic_add(counter, 0, sem="acquire") < tl.cdiv(count, BLOCK) * stage:
                pass
            old = states + (stage - 1) % 2 * turn
            log_odds += prior
            for k in tl.static_range(SIDE * SIDE - 1):
                other = k + (k >= SIDE * SIDE // 2)
                offset = (other // SIDE - SIDE // 2) * box_width + other % SIDE - SIDE // 2
                log_odds += weights[k] * tl.load(old + offset + i)
            log_odds = tl.minimum(tl.maximum(log_odds, -LIMIT), LIMIT)
            tl.store(state + stage % 2 * turn, log_odds, here)
            tl.debug_barrier()
            tl.atomic_add(counter, 1, sem="release")
        tl.store(masks + crop * size + place, log_odds > 0, here)


def triton_mean_field(
    probs: Tensor,
    box_masks: Tensor,
    images: Tensor,
    zeta: float,
    omega: float,
    kernel_size: int,
    num_steps: int,
    stages_per_launch: int | None = None,
) -> Tensor:
    """:func:`mean_field.mean_field` of maps in one precision, without waiting for the GPU.

    ``stages_per_launch`` is for Triton's interpreter, whose programs run one after the other and
    could not wait for each other.
    """
    batch, height, width = probs.shape
    masks = torch.zeros(probs.shape, dtype=torch.bool, device=probs.device)
    if not masks.numel():
        return masks
    block = block_size(kernel_size)
    stages_per_launch = stages_per_launch or num_steps + 1
    # Pixels at the box's border read beside it, what has the weight 0 but has to be a number.
    margin = (kernel_size // 2) * (width + 1)
    states = probs.new_zeros(2, margin + probs.numel() + block + margin)
    counters = torch.zeros(1 + batch, dtype=torch.int32, device=probs.device)
    with torch.cuda.device_of(probs):
        for first in range(0, num_steps + 1, stages_per_launch):
            mean_field_kernel[(batch * num_blocks(probs, kernel_size),)](
                probs.contiguous(),
                box_masks.contiguous(),
                images.contiguous(),
                states[0, margin:],
                counters,
                masks,
                states.shape[1],
                height,
                width,
                images.shape[1],
                first,
                min(first + stages_per_launch, num_steps + 1),
                ZETA=zeta,
                OMEGA=omega,
                LIMIT=MAX_LOG_ODDS,
                SIDE=kernel_size,
                BLOCK=block,
                num_warps=NUM_WARPS,
                num_stages=1,
            )
    return masks


def block_size(kernel_size: int) -> int:
    """Pixels of a program, whose weights fit into the registers of its threads."""
    return max(2 ** int(math.log2(LOADS / (kernel_size**2 - 1))), 128)


def num_blocks(probs: Tensor, kernel_size: int) -> int:
    """Programs of a crop, all of which have to fit on the GPU at once."""
    return triton.cdiv(probs.shape[1] * probs.shape[2], block_size(kernel_size))
