# SPDX-License-Identifier: Apache-2.0
"""Refining of predicted masks by the colours of their image. Not in the paper."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mal_mmdet.structures import box_masks, resize_maps

from .losses import mean_field

EPS = 1e-6  # thresholds of 0 and 1 have no finite logit
MARGIN = 1.0
"""In log-odds. With less the border between refined cells bends to what they were before."""
COLOR_BINS = 16
COLOR_EPS = 1e-3  # of a colour that only one of the two has
FIXED_POINT = 1 << 20


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
    anywhere in the crop is added to the logits first, see :func:`color_log_odds`.

    Args:
        logits: (B, h, w).
        thresholds: Probabilities above which a cell of each mask is foreground, (B,); there the
            mean field starts undecided.
        bboxes: (B, 4), in cells of the logits. Outside them nothing is foreground.
        images: Normalised crops of that frame, (B, 3, S, S).
        color_weight: Factor of the colours' log-odds; 0 leaves the mean field alone.
        **mean_field_cfg: See :func:`mean_field`.

    Returns:
        (B, h, w), at least ``MARGIN`` above the threshold's logit, or at least that below; as
        given where the mean field leaves nothing of an object.
    """
    limits = torch.logit(thresholds, EPS)[:, None, None]
    logits, size = logits - limits, logits.shape[1:]
    images, inside = resize_maps(images.float(), size), box_masks(bboxes, size)
    probs = logits.sigmoid().nan_to_num(0.0)  # a NaN might reach the next crops
    odds = logits
    if color_weight:
        odds = odds + color_weight * color_log_odds(probs * inside, images)
        probs = odds.sigmoid().nan_to_num(0.0)
    masks = mean_field(probs, inside, images, **mean_field_cfg)
    refined = torch.where(masks, odds.clamp(min=MARGIN), odds.clamp(max=-MARGIN))
    return limits + torch.where(masks.any(2).any(1)[:, None, None], refined, logits)


def color_log_odds(probs: Tensor, images: Tensor) -> Tensor:
    """log p(colour | object) − log p(colour | background) of every cell of a crop.

    Both are histograms of this crop alone, to which a cell adds as far as it is likely to be of
    the object: ``COLOR_BINS``³ colours, between the lowest and the highest value of each channel.

    Args:
        probs: Of being the object's, (B, h, w), in [0, 1].
        images: (B, 3, h, w), however normalised.

    Returns:
        (B, h, w); 0 where there is no object, nothing else, or a single colour.
    """
    colors = images.flatten(2)
    lowest, highest = colors.aminmax(dim=2, keepdim=True)
    scale = (COLOR_BINS - 1) / (highest - lowest).clamp(min=EPS)
    red, green, blue = ((colors - lowest) * scale).round().long().unbind(1)
    bins = ((red * COLOR_BINS + green) * COLOR_BINS + blue)[:, None].expand(-1, 2, -1)
    # Whole numbers, whose sum does not depend on the order in which a GPU adds them.
    cells = torch.stack([probs, torch.ones_like(probs)], 1).flatten(2)
    cells = (cells * FIXED_POINT).long()
    histograms = cells.new_zeros(len(cells), 2, COLOR_BINS**3).scatter_add_(2, bins, cells)
    of_object, of_all = histograms.gather(2, bins).unbind(1)
    prior = probs.mean((1, 2), keepdim=True)
    posterior = (of_object / of_all).view_as(probs)
    return torch.logit(posterior, COLOR_EPS) - torch.logit(prior, COLOR_EPS)
