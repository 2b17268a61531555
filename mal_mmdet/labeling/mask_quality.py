# SPDX-License-Identifier: Apache-2.0
"""How good a mask is, judged without a human one: from its network, its shape and its colours."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from mal_mmdet.structures import box_masks, resize_bboxes

GRID = 32
"""Cells a side on which masks are judged: a finer grid takes longer and judges no better."""
EPS = 1e-6
LOGIT_LIMIT = 50.0
"""Half precision may overflow to infinity, whose mean and variance are no numbers."""
RIDGE = 1e-3
"""Keeps colours solvable that do not vary; of no weight beside the moments of those that do."""


def mask_quality(
    view_logits: Tensor,
    thresholds: Tensor,
    bboxes: Tensor,
    images: Tensor,
    refined: Tensor | None = None,
) -> Tensor:
    """Estimates the IoU of masks with the unknown true ones, in order to rank the masks.

    The mean, with equal weights, of four opinions in [0, 1], or of five where masks are refined,
    none of them fitted to human masks:

    - :func:`expected_iou`: how sure the network is of it, and how far its views agree;
    - :func:`ellipse_iou`: how much it looks like the plainest object in such a box;
    - :func:`colour_separation`: how well colour alone tells it from its surroundings;
    - :func:`border_contrast`: whether it ends where the colour changes.

    The network errs with conviction where the picture misleads it, so its own opinion does not
    suffice; the other three know nothing of the network but the mask. Refined masks get a fifth,
    :func:`expected_iou` of what they are then; the four judge them as they were before. The order
    is what counts: the value itself may lie above or below the IoU of a data set as a whole.

    Args:
        view_logits: Floating, (V, B, h, w): of every box, the logits of V ≥ 1 views in one
            frame, such as by student, by teacher, of the mirrored crop turned back and of other
            crops. The mask is cut from their mean.
        thresholds: Probabilities above which a cell of each mask is foreground, (B,).
        bboxes: (B, 4), in cells of the logits. Only what lies in the box counts as mask.
        images: The crops of that frame, (B, C, H, W), of any size and in any linear scale of
            colour, since only relations of colours count.
        refined: Logits of the refined masks in that frame, (B, h', w').

    Returns:
        float32, (B,), in [0, 1]: 1 for the best. Without a gradient.
    """
    with torch.no_grad(), torch.autocast(view_logits.device.type, enabled=False):
        bboxes = resize_bboxes(bboxes.float(), view_logits.shape[2:], (GRID, GRID))
        thresholds = thresholds.float()[:, None, None]
        logits = logits_on_grid(view_logits)
        covers = box_masks(bboxes, (GRID, GRID))
        masks = covers * cut_masks(logits.mean(0), thresholds, covers)
        colours = standard_colours(images)
        opinions = [
            expected_iou(logits - torch.logit(thresholds, EPS), masks, covers),
            ellipse_iou(masks, bboxes),
            colour_separation(masks, colours),
            border_contrast(masks, colours, covers),
        ]
        if refined is not None:
            logits = logits_on_grid(refined[None])
            masks = covers * cut_masks(logits[0], thresholds, covers)
            opinions.append(expected_iou(logits - torch.logit(thresholds, EPS), masks, covers))
        return torch.stack(opinions).mean(0).clamp(0, 1)


def logits_on_grid(logits: Tensor) -> Tensor:
    """Means over cells of the grid: (V, B, h, w) → (V, B, G, G), float32."""
    maps = logits.float().clamp(-LOGIT_LIMIT, LOGIT_LIMIT).flatten(0, 1)[:, None]
    return F.adaptive_avg_pool2d(maps, GRID).view(*logits.shape[:2], GRID, GRID)


def cut_masks(logits: Tensor, thresholds: Tensor, covers: Tensor) -> Tensor:
    """Masks as :func:`paste_mask` cuts them: at half of the maximum where none is above.

    Args:
        logits: (B, G, G).
        thresholds: (B, 1, 1).
        covers: Share of each cell that the box covers, (B, G, G).

    Returns:
        Bool, (B, G, G), also outside the box.
    """
    probs = logits.sigmoid()
    peaks = (probs * (covers > 0)).amax((1, 2), keepdim=True)
    return torch.where(peaks > thresholds, probs > thresholds, probs >= peaks / 2)


def standard_colours(images: Tensor) -> Tensor:
    """Images of any size on the grid, every channel with mean 0 and deviation 1 (0 if flat).

    A cell's colour is the mean of about four pixels, which is all that is read: to shrink the
    whole images costs many times as much as everything else here.
    """
    down, across = (max(side // (2 * GRID), 1) for side in images.shape[2:])
    pixels = images[:, :, down // 2 :: down, across // 2 :: across]
    colours = F.adaptive_avg_pool2d(pixels.float(), GRID)
    colours = colours - colours.mean((2, 3), keepdim=True)
    return colours / (colours.square().mean((2, 3), keepdim=True).sqrt() + EPS)


def expected_iou(view_logits: Tensor, masks: Tensor, covers: Tensor) -> Tensor:
    """IoU to be expected if every cell is foreground with the probability that its logits say.

    It is the ratio of the expected intersection and the expected union. A cell's logit is taken
    as normally distributed with the variance between the views: its expected sigmoid lies the
    nearer to 1/2, the more the views differ (MacKay's approximation).

    Args:
        view_logits: (V, B, G, G), 0 at the threshold: whoever cuts at 0.1 believes that a cell
            with 0.1 is as likely in the object as not.
        masks, covers: (B, G, G), in [0, 1]; ``masks`` is 0 or ``covers``.

    Returns:
        (B,), in [0, 1].
    """
    mean = view_logits.mean(0)
    variance = (view_logits - mean).square().mean(0)
    probs = (mean / (1 + math.pi / 8 * variance).sqrt()).sigmoid()
    inside = (probs * masks).sum((1, 2))
    outside = (probs * (covers - masks)).sum((1, 2))
    return inside / (masks.sum((1, 2)) + outside).clamp(min=EPS)


def ellipse_iou(masks: Tensor, bboxes: Tensor) -> Tensor:
    """IoU with the ellipse that touches the sides of the box.

    That ellipse is a crude guess at any object, but one which a mask of scraps, of a corner or
    of the background between objects does not meet.

    Args:
        masks: (B, G, G), in [0, 1].
        bboxes: (B, 4), in cells of the masks.

    Returns:
        (B,), in [0, 1].
    """
    centres = (bboxes[:, :2] + bboxes[:, 2:]) / 2
    radii = ((bboxes[:, 2:] - bboxes[:, :2]) / 2).clamp(min=EPS)
    cells = torch.arange(masks.shape[1], device=masks.device) + 0.5
    x, y = (((cells[:, None, None] - centres) / radii) ** 2).unbind(2)  # (G, B) each
    ellipses = (x.T[:, None] + y.T[:, :, None] < 1).to(masks)
    intersection = torch.minimum(masks, ellipses).sum((1, 2))
    return intersection / torch.maximum(masks, ellipses).sum((1, 2)).clamp(min=EPS)


def colour_separation(masks: Tensor, colours: Tensor) -> Tensor:
    """Accuracy, of inside and outside alike, of telling the mask from the crop by colour alone.

    The classifier is the quadric in colour space that fits the mask best by least squares, with
    inside and outside of equal weight. Real objects mostly have colours of their own; a mask
    that mixes object and background does not.

    Args:
        masks: (B, G, G), in [0, 1].
        colours: (B, C, G, G), standardised.

    Returns:
        (B,), in [0, 1]; 1/2 if colour tells nothing.
    """
    colours = colours.flatten(2)
    i, j = torch.triu_indices(colours.shape[1], colours.shape[1], device=colours.device)
    products = colours[:, i] * colours[:, j]
    terms = torch.cat([torch.ones_like(colours[:, :1]), colours, products], 1)
    inside = masks.flatten(1)
    inside, outside = (w / w.sum(1, keepdim=True).clamp(min=EPS) for w in (inside, 1 - inside))
    moments = (terms * (inside + outside)[:, None]) @ terms.mT
    moments.diagonal(dim1=1, dim2=2).add_(RIDGE)
    signed = (inside - outside)[:, :, None]
    # A GPU would be waited for to know whether it can be solved: the ridge sees to that.
    fit = torch.linalg.solve_ex(moments, terms @ signed)[0].mT @ terms  # (B, 1, G²), over 0: inside
    return 0.5 + (fit.sign() @ signed)[:, 0, 0] / 4


def border_contrast(masks: Tensor, colours: Tensor, covers: Tensor) -> Tensor:
    """Colour step ``s`` across the mask's border against the mean step ``m`` in the box.

    Args:
        masks, covers: (B, G, G), in [0, 1].
        colours: (B, C, G, G), standardised.

    Returns:
        ``s / (s + m)``, (B,), in [0, 1]; 1/2 for a border that runs anywhere, or for none.
    """
    border, step, pairs, total = 0.0, 0.0, 0.0, 0.0
    for axis in (1, 2):
        size = masks.shape[axis] - 1
        ends = [[x.narrow(axis, k, size) for k in (0, 1)] for x in (masks, covers)]
        crossing, both = (ends[0][1] - ends[0][0]).abs(), torch.minimum(*ends[1])
        steps = colours.diff(dim=axis + 1).square().sum(1).sqrt()
        border, step = border + crossing.sum((1, 2)), step + (crossing * steps).sum((1, 2))
        pairs, total = pairs + both.sum((1, 2)), total + (both * steps).sum((1, 2))
    mean = total / pairs.clamp(min=EPS)
    step = torch.where(border > EPS, step / border.clamp(min=EPS), mean)
    return (step + EPS) / (step + mean + 2 * EPS)
