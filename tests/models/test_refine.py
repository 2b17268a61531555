# SPDX-License-Identifier: Apache-2.0
import math

import pytest
import torch
import torch.nn.functional as F

from mal_mmdet.models.refine import GRID, refine_logits
from tests.models.losses.test_color_model import naive_color_log_odds
from tests.models.losses.test_mean_field import naive_mean_field


@pytest.mark.parametrize("color_weight", [0.0, 1.5])
@pytest.mark.parametrize("threshold", [0.5, 0.1])
def test_refined_logits_have_the_sign_of_the_mean_field(threshold, color_weight):
    """Against the method as stated, pixel by pixel."""
    height, width, steps, zeta = 12, 10, 20, 0.4
    limit = math.log(threshold / (1 - threshold))
    noise = limit + 2 * torch.randn(3, height, width, dtype=torch.float64)
    noise[:, 3:9, 2:7] += 2  # the object
    noise[2] = limit - 3  # nothing of it is left
    images = 0.2 * torch.randn(3, 3, height, width, dtype=torch.float64)
    images[:, :, 3:9, 2:7] += 2
    boxes = torch.tensor([[1.0, 2.0, 8.0, 10.0], [2.0, 3.0, 7.0, 9.0], [0.0, 0.0, 10.0, 12.0]])
    cells = torch.zeros(3, height, width, dtype=torch.float64)
    for cell, (x0, y0, x1, y1) in zip(cells, boxes.int().tolist()):
        cell[y0:y1, x0:x1] = 1
    field = dict(zeta=zeta, omega=1.0, kernel_size=3, num_steps=steps)
    field["color_weight"] = color_weight
    refined = refine_logits(noise, torch.tensor([threshold] * 3), boxes, images, **field)

    above, before = refined - limit, noise - limit
    if color_weight:
        probs = before.sigmoid() * cells
        colors = [naive_color_log_odds(*crop) for crop in zip(probs, images.float())]
        before = before + color_weight * torch.stack(colors)
    masks = naive_mean_field(before.sigmoid(), cells, images, zeta, 1.0, 3, steps, eps=0)
    assert masks[:2].any() and not masks[2].any()
    assert torch.equal(above[:2] > 0, masks[:2]) and (above[:2].abs() >= 0.9999).all()
    assert ((before[:2] > 0) != masks[:2]).any()
    kept = ((before > 0) == masks) & (before.abs() > 1)
    torch.testing.assert_close(above[kept].double(), before[kept], atol=1e-3, rtol=0)
    torch.testing.assert_close(refined[2].double(), noise[2], atol=1e-5, rtol=0)


@pytest.mark.parametrize("threshold", [0.0, 1.0])
def test_thresholds_without_a_finite_logit(threshold):
    logits, boxes = torch.randn(1, 8, 8), torch.tensor([[1.0, 1.0, 7.0, 7.0]])
    for weight in (0.0, 4.0):
        limit, images = torch.tensor([threshold]), torch.rand(1, 3, 8, 8)
        assert refine_logits(logits, limit, boxes, images, weight).isfinite().all()


@pytest.mark.parametrize("color_weight", [0.0, 4.0])
def test_a_crop_without_finite_logits_spoils_no_other(color_weight):
    logits, images = 2 * torch.randn(3, 16, 16), 0.1 * torch.randn(3, 3, 16, 16)
    boxes = torch.tensor([[0.0, 0.0, 16.0, 16.0]] * 3)
    expected = refine_logits(logits, torch.tensor([0.5] * 3), boxes, images, color_weight)
    logits[1] = torch.nan
    found = refine_logits(logits, torch.tensor([0.5] * 3), boxes, images, color_weight)
    assert torch.equal(found[[0, 2]], expected[[0, 2]]) and found[1].isnan().all()


def test_colors_move_masks_that_no_neighbour_moves():
    """A leg apart from its table is found; a cushion like those beside the table is left out."""
    images = torch.zeros(1, 3, 24, 24)
    images[:, 0, 4:10, 4:20] = 2.0  # the table
    images[:, 0, 14:20, 4:8] = 2.0  # its leg
    images[:, 2, 14:18, 14:18] = 2.0  # a cushion
    images[:, 2, 20:] = 2.0  # and some more of them
    logits = torch.full((1, 24, 24), -3.0)
    logits[:, 4:10, 4:20] = 3.0
    logits[:, 14:20, 4:8] = -1.0
    logits[:, 14:18, 14:18] = 0.5
    boxes, half = torch.tensor([[4.0, 4.0, 20.0, 20.0]]), torch.tensor([0.5])
    alone = refine_logits(logits, half, boxes, images, zeta=0.3)[0] > 0
    colors = refine_logits(logits, half, boxes, images, color_weight=4.0, zeta=0.3)[0] > 0
    assert alone[14:18, 14:18].all() and not alone[14:20, 4:8].any()
    table_and_leg = images[0, 0] == 2.0
    assert torch.equal(colors, table_and_leg)


def test_colors_outside_the_box_are_the_backgrounds():
    """However sure of itself the network is there."""
    images = torch.zeros(1, 3, 16, 16)
    images[:, :, :, :6] = 1.0  # a wall that the box cuts
    images[:, 1, 4:12, 6:12] = 1.0  # the object
    logits = torch.full((1, 16, 16), -3.0)
    logits[:, :, :12] = 1.0
    boxes, half = torch.tensor([[4.0, 4.0, 12.0, 12.0]]), torch.tensor([0.5])
    refined = refine_logits(logits, half, boxes, images, color_weight=4.0, zeta=0.3)[0] > 0
    assert refined[4:12, 6:12].all() and refined.sum() == 48


def test_coarse_logits_are_refined_on_finer_cells():
    """The edges of an object run through the network's cells, in a crop that is no square."""
    images = torch.zeros(2, 3, 40, 128)
    images[:, :, 12:28, 22:86] = 2.0
    logits = torch.full((2, 10, 16), -3.0)
    logits[0, 3:7, 3:10] = 3.0
    boxes, half = torch.tensor([[1.0, 2.0, 14.0, 8.0]] * 2), torch.tensor([0.5] * 2)
    refined = refine_logits(logits, half, boxes, images, color_weight=4.0, zeta=0.3)
    assert refined.shape == (2, 40, GRID)
    on_grid = torch.zeros(40, GRID, dtype=torch.bool)
    on_grid[12:28, 11:43] = True
    assert torch.equal(refined[0] > 0, on_grid)
    # Of an object of which nothing is left, the logits come back.
    logits[1, 3:7, 3:10] = torch.linspace(-2, -1, 28).view(4, 7)
    boxes[1] = torch.tensor([12.0, 8.0, 14.0, 9.0])
    refined = refine_logits(logits, half, boxes, images, color_weight=4.0, zeta=0.3)
    given = F.interpolate(logits[1:, None], (40, GRID), mode="bilinear")[0, 0]
    torch.testing.assert_close(refined[1], given)


@pytest.mark.parametrize("corner", [(0, 0), (5, 1), (2, 6)])
def test_a_box_is_where_it_is_on_finer_cells(corner):
    """The object fills its box, which is no square, and nothing of it lies outside."""
    x, y = corner
    logits, crop = torch.full((1, 8, 16), 4.0), torch.randn(1, 3, 64, 64)
    boxes = torch.tensor([[x, y, x + 7.0, y + 2.0]])
    refined = refine_logits(logits, torch.tensor([0.5]), boxes, crop, zeta=1e-3)
    expected = torch.zeros(64, 64, dtype=torch.bool)
    expected[8 * y : 8 * y + 16, 4 * x : 4 * x + 28] = True
    assert torch.equal(refined[0] > 0, expected)


@pytest.mark.parametrize(
    "cells, pixels, expected", [(8, 40, 40), (80, 96, 80), (48, 48, 48), (80, 40, 80)]
)
def test_cells_are_no_finer_than_the_crop_and_no_coarser_than_the_logits(cells, pixels, expected):
    crop = torch.randn(2, 3, pixels, pixels)
    boxes, half = torch.tensor([[1.0, 1.0, cells - 1.0, cells - 1.0]] * 2), torch.tensor([0.5] * 2)
    refined = refine_logits(torch.randn(2, cells, cells), half, boxes, crop, color_weight=4.0)
    assert refined.shape == (2, expected, expected)
