# SPDX-License-Identifier: Apache-2.0
"""The mean field as compiled code for CPU cores, a crop at a time.

A crop's box, and a frame as wide as a neighbourhood reaches, are laid out as one vector, row after
row, so that a neighbour is a fixed number of places away. Where that place holds some other pixel,
at the ends of rows, or none, in the margins at both ends of the vector, the weight is 0. A crop
goes through all steps before the next begins, and its vectors are in a core's cache then.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numba
import numpy as np
import torch
from torch import Tensor

from .mean_field_torch import MAX_LOG_ODDS, MIN_WEIGHT, STEPS_BETWEEN_CHECKS

BLOCK = 1024  # places that a step works on at once
PIXELS_OF_A_THREAD = 2**17
"""So many take some milliseconds. After each of its operations PyTorch's own threads keep the cores
busy for about as long, waiting for the next: with less work each, more threads would be slower.
"""


def compiled_mean_field(
    probs: Tensor,
    box_masks: Tensor,
    images: Tensor,
    zeta: float,
    omega: float,
    kernel_size: int,
    num_steps: int,
) -> Tensor:
    """:func:`mean_field.mean_field` of maps in one precision, compiled when it is first called."""
    masks = probs.new_zeros(probs.shape, dtype=torch.bool)
    maps = [m.detach().contiguous().numpy() for m in (probs, box_masks, images, masks)]
    # In the maps' precision: with others numbers would be converted to and fro.
    constants = np.array([-0.5 / zeta**2, omega, MIN_WEIGHT, MAX_LOG_ODDS], maps[0].dtype)
    # An argument, since kept code would not notice another value of a file that is not its own.
    steps = num_steps, STEPS_BETWEEN_CHECKS

    def refine(*crop: np.ndarray) -> None:
        _crop(*crop, constants, kernel_size // 2, *steps)

    threads = min(torch.get_num_threads(), len(probs), probs.numel() // PIXELS_OF_A_THREAD)
    if threads > 1:
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(refine, *maps))
    else:
        list(map(refine, *maps))
    return masks


@numba.njit(nogil=True, cache=True, error_model="numpy")
def _crop(probs, box_mask, image, mask, constants, radius, num_steps, check_after):
    """Refines probs (h, w) into the bool mask (h, w), all False before."""
    top, bottom, left, right = _window(box_mask, radius)
    height, width = bottom - top, right - left
    if height <= 0:  # nothing is in the box
        return
    margin = radius * (width + 1)
    first, last = margin, margin + height * width
    log_odds = np.zeros(last + margin, probs.dtype)
    log_box = np.zeros(last + margin, probs.dtype)
    real, limit = probs.dtype.type, constants[3]
    low, high, one = real(0.1), real(0.9), real(1)
    for y in range(height):
        for x in range(width):
            place, share = first + y * width + x, box_mask[top + y, left + x]
            prob = min(max(probs[top + y, left + x] * share, low), high)
            log_odds[place] = np.log(prob / (one - prob))
            log_box[place] = np.log(share)  # −inf outside the box: background after every step
    window = image[:, top:bottom, left:right]
    weights, offsets = _weights(window, log_odds, constants, radius, first)
    places = first, last
    log_odds = _steps(log_odds, log_box, weights, offsets, limit, places, num_steps, check_after)
    for y in range(height):
        for x in range(width):
            mask[top + y, left + x] = log_odds[first + y * width + x] > 0


@numba.njit(nogil=True, cache=True)
def _window(box_mask, radius):
    """Rows and columns that hold all that is not 0, and a frame within the crop."""
    height, width = box_mask.shape
    top, bottom, left, right = height, 0, width, 0
    for y in range(height):
        for x in range(width):
            if box_mask[y, x] > 0:
                top, bottom = min(top, y), max(bottom, y + 1)
                left, right = min(left, x), max(right, x + 1)
    if bottom == 0:
        return 0, 0, 0, 0
    return (
        max(top - radius, 0),
        min(bottom + radius, height),
        max(left - radius, 0),
        min(right + radius, width),
    )


@numba.njit(nogil=True, cache=True)
def _weights(image, like, constants, radius, first):
    """Weights of pixels and their neighbours ahead, (K, L), and how many places ahead they are."""
    channels, height, width = image.shape
    scale, omega, smallest = constants[:3]
    weights = np.zeros(((2 * radius + 1) ** 2 // 2, len(like)), like.dtype)
    offsets = np.empty(len(weights), np.int64)
    k = 0
    for dy in range(radius + 1):
        for dx in range(-radius if dy else 1, radius + 1):
            offsets[k] = dy * width + dx
            begin, end = max(-dx, 0), width - max(dx, 0)
            for y in range(height - dy):
                row = weights[k, first + y * width + begin : first + y * width + end]
                for channel in range(channels):
                    pixels = image[channel, y, begin:end]
                    others = image[channel, y + dy, begin + dx : end + dx]
                    for x in range(len(row)):
                        difference = pixels[x] - others[x]
                        row[x] += difference * difference
                for x in range(len(row)):
                    weight = omega * np.exp(row[x] * scale)
                    row[x] = weight if weight > smallest else 0
            k += 1
    return weights, offsets


@numba.njit(nogil=True, cache=True)
def _steps(log_odds, log_box, weights, offsets, limit, places, num_steps, check_after):
    first, last = places
    now, then = log_odds, np.zeros_like(log_odds)
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
        if (step + 1) % check_after == 0 and np.array_equal(now, then):
            break
    return now
