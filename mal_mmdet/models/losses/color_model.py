# SPDX-License-Identifier: Apache-2.0
"""What the colours of a crop say about which of its cells are the object. Not in the paper."""

from __future__ import annotations

import torch
from torch import Tensor

BINS = 16
EPS = 1e-3  # of a colour that only one of the two has
FIXED_POINT = 1 << 20


@torch.no_grad()
def color_log_odds(probs: Tensor, images: Tensor) -> Tensor:
    """log p(colour | object) − log p(colour | background) of every cell of a crop.

    Both are histograms of this crop alone, to which a cell adds as far as it is likely to be of
    the object: ``BINS``³ colours, between the lowest and the highest value of each channel. A
    cell is judged without what it has added itself, or a colour of its own would confirm it: in
    its place counts the mean of the crop.

    Args:
        probs: Of being the object's, (B, h, w), in [0, 1].
        images: (B, 3, h, w), however normalised.

    Returns:
        (B, h, w), float32 or more precise; 0 where there is no object or nothing else, and next to
        0 where there is a single colour.
    """
    dtype = torch.promote_types(probs.dtype, torch.float32)
    probs, colors = probs.to(dtype), images.to(dtype).flatten(2)
    lowest, highest = colors.aminmax(dim=2, keepdim=True)
    # 1e-3 is less than a level of grey and more than what resizing makes of a single colour.
    colors = (colors - lowest) * ((BINS - 1) / (highest - lowest).clamp(min=1e-3))
    red, green, blue = colors.round().nan_to_num(0.0).clamp(0, BINS - 1).long().unbind(1)
    # A GPU adds in any order: whole numbers have one sum, and PyTorch's deterministic mode takes
    # vectors only. So all histograms lie one after the other, two a crop.
    starts = torch.arange(2 * len(probs), device=probs.device) * BINS**3
    bins = ((red * BINS + green) * BINS + blue)[:, None] + starts.view(-1, 2, 1)
    cells = (torch.stack([probs, torch.ones_like(probs)], 1).flatten(2) * FIXED_POINT).long()
    histograms = cells.new_zeros(starts.numel() * BINS**3)
    histograms.scatter_add_(0, bins.flatten(), cells.flatten())
    (of_object, of_all), (own, one) = histograms[bins].unbind(1), cells.unbind(1)
    prior = own.sum(1, keepdim=True).to(dtype) / one.sum(1, keepdim=True)
    posterior = ((of_object - own) + prior * FIXED_POINT) / of_all
    return (torch.logit(posterior, EPS) - torch.logit(prior, EPS)).view_as(probs)
