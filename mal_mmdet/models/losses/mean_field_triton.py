# SPDX-License-Identifier: Apache-2.0
"""All steps of the mean field in one kernel, for GPUs (:func:`mean_field.gpu_steps`)."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .mean_field import MAX_LOG_ODDS

PLACES = 2048  # that a program works on at once, two for each of its threads
NUM_WARPS = 32


@triton.jit(do_not_specialize=["length", "num_steps"])
def crop_steps(
    log_odds,
    log_box,
    weights,
    offsets,
    bounds,
    length,
    num_steps,
    NEIGHBOURS: tl.constexpr,
    LIMIT: tl.constexpr,
    PLACES: tl.constexpr,
):
    """Takes a crop, whose places lie between two ``bounds``, through all steps.

    ``log_odds`` has two vectors of ``length``: each step reads one and writes the other.
    """
    length = tl.cast(length, tl.int64)  # of which there are as many vectors as neighbours
    first = tl.load(bounds + tl.program_id(0))
    last = tl.load(bounds + tl.program_id(0) + 1)
    for step in range(num_steps):
        old = log_odds + step % 2 * length
        new = log_odds + (step + 1) % 2 * length
        for start in range(first, last, PLACES):
            i = start + tl.arange(0, PLACES)
            inside = i < last
            update = tl.load(old + i, inside) + tl.load(log_box + i, inside)
            for k in tl.static_range(NEIGHBOURS):
                offset = tl.load(offsets + k)
                weight = weights + k * length + i
                update += tl.load(weight, inside) * tl.load(old + i + offset, inside)
                update += tl.load(weight - offset, inside) * tl.load(old + i - offset, inside)
            tl.store(new + i, tl.minimum(tl.maximum(update, -LIMIT), LIMIT), inside)
        # The threads of a program read what others wrote, and only after they did.
        tl.debug_barrier()


def triton_steps(
    log_odds: Tensor,
    log_box: Tensor,
    weights: Tensor,
    offsets: list[int],
    bounds: list[int],
    num_steps: int,
) -> Tensor:
    """:func:`mean_field.torch_steps` with a program for each crop.

    The vectors of a crop of 128 × 128, some 0.4 MB, are read from and written to the caches of the
    multiprocessor that the program runs on and of the GPU, in one launch instead of ten a step.
    """
    states = torch.stack([log_odds, torch.zeros_like(log_odds)])
    with torch.cuda.device_of(states):
        crop_steps[(len(bounds) - 1,)](
            states,
            log_box,
            weights,
            torch.tensor(offsets, device=states.device),
            torch.tensor(bounds, device=states.device),
            len(log_odds),
            num_steps,
            NEIGHBOURS=len(offsets),
            LIMIT=MAX_LOG_ODDS,
            PLACES=PLACES,
            num_warps=NUM_WARPS,
        )
    return states[num_steps % 2]
