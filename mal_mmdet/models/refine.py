# SPDX-License-Identifier: Apache-2.0
"""Refining of predicted masks by the colours of their image. Not in the paper."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mal_mmdet.structures import box_masks, resize_bboxes, resize_maps

from .losses import color_log_odds, mean_field

EPS = 1e-6  # thresholds of 0 and 1 have no finite logit
GRID = 64
"""Fewest cells a side on which masks are refined. An edge of colour is found more exactly than a
network of coarser cells places it; still finer ones gain nothing."""
MARGIN = 1.0
"""In log-odds. With less the border between refined cells bends to what they were before."""


def refine_logits(
    logits: Tensor,
    thresholds: Tensor,
    bboxes: Tensor,
    images: Tensor,
    color_weight: float = 0.0,
    **mean_field_cfg: Any,
) -> Tensor:
    """Logits that exceed their threshold where a mean field that starts from them ends in mask.

    That moves borders to edges of colour and closes holes, as it does in the targets of training,
    which a network trained for a short time is far from having fitted. The mean field compares a
    cell with its neighbours. Whether it has the object's colours or those of the background
    anywhere in the crop is added to the logits first, see :func:`color_log_odds`, for which a cell
    at its threshold is half the object's and one outside the box none of it.

    Sides h' and w' of the result are those of the logits, or ``GRID`` cells where they are coarser,
    but then no more than the crops have pixels.

    Args:
        logits: (B, h, w).
        thresholds: Probabilities above which a cell of each mask is foreground, (B,); there the
            mean field starts undecided.
        bboxes: (B, 4), in cells of the logits. Outside them nothing is foreground.
        images: Normalised crops of that frame, (B, 3, S, S).
        color_weight: Factor of the colours' log-odds; 0 leaves the mean field alone.
        **mean_field_cfg: See :func:`mean_field`.

    Returns:
        (B, h', w'), at least ``MARGIN`` above the threshold's logit, or at least that below; only
        resized where the mean field leaves nothing of an object.
    """
    given, crop = logits.shape[1:], images.shape[2:]
    size = tuple(max(side, min(GRID, most)) for side, most in zip(given, crop))
    bboxes = resize_bboxes(bboxes, given, size)
    limits = torch.logit(thresholds, EPS)[:, None, None]
    logits = resize_maps((logits - limits)[:, None], size)[:, 0]
    images, inside = resize_maps(images.float(), size), box_masks(bboxes, size)
    probs = logits.sigmoid().nan_to_num(0.0)  # a NaN might reach the next crops
    odds = logits
    if color_weight:
        odds = odds + color_weight * color_log_odds(probs * inside, images)
        probs = odds.sigmoid().nan_to_num(0.0)
    masks = mean_field(probs, inside, images, **mean_field_cfg)
    refined = torch.where(masks, odds.clamp(min=MARGIN), odds.clamp(max=-MARGIN))
    return limits + torch.where(masks.any(2).any(1)[:, None, None], refined, logits)
