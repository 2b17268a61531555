# SPDX-License-Identifier: Apache-2.0
"""Runs of a mask as COCO's text.

A mask is counted down the columns of its image: so many pixels of background, so many of the mask,
and so on in turn. The text holds the first three runs as they are and every other one as its
difference from the one two before, in groups of five bits, the lowest first: a character for each,
from ``0`` on, with a sixth bit where more follow. The last group's highest bit is the sign.

pycocotools does the same from lists of Python's integers, for which it holds Python's lock.
"""

from __future__ import annotations

import numba
import numpy as np

ZERO = ord("0")
GROUPS = 13  # of the longest number, of 64 bits


def compress_runs(runs: np.ndarray) -> str:
    """The text of the runs of a mask, int64, shape (R,), none negative."""
    return _compress(runs).tobytes().decode("ascii")


def decompress_runs(counts: str) -> np.ndarray:
    """The runs that a text holds, int64, shape (R,).

    Args:
        counts: Characters from ``0`` to ``o``, of which the last ends a number.
    """
    return _decompress(np.frombuffer(counts.encode("ascii"), np.uint8))


@numba.njit(nogil=True, cache=True)
def _compress(runs):
    text = np.empty(GROUPS * len(runs), np.uint8)
    length = 0
    for i in range(len(runs)):
        rest = runs[i] - runs[i - 2] if i > 2 else runs[i]
        more = True
        while more:
            group = rest & 0x1F
            rest >>= 5
            # All that is left is the sign, and the group has it.
            more = rest != (-1 if group & 0x10 else 0)
            text[length] = ZERO + (group | 0x20 if more else group)
            length += 1
    return text[:length]


@numba.njit(nogil=True, cache=True)
def _decompress(text):
    runs = np.empty(len(text), np.int64)
    count, value, shift = 0, 0, 0
    for code in text:
        group = np.int64(code) - ZERO
        value |= (group & 0x1F) << shift
        shift += 5
        if not group & 0x20:
            value -= (group & 0x10) << (shift - 4)  # the sign
            runs[count] = value + runs[count - 2] if count > 2 else value
            count += 1
            value = shift = 0
    return runs[:count]
