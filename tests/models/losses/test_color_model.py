# SPDX-License-Identifier: Apache-2.0
import math
from collections import Counter

import pytest
import torch

from mal_mmdet.models.losses import color_log_odds
from mal_mmdet.models.losses.color_model import BINS, EPS
from mal_mmdet.structures import resize_maps


def naive_color_log_odds(probs, image):
    """One crop: (h, w) and (3, h, w), pixel by pixel."""
    height, width = probs.shape
    bins = {}
    for y in range(height):
        for x in range(width):
            color = []
            for channel in image.double():
                low, high = float(channel.min()), float(channel.max())
                span = high - low if high > low else 1.0
                color.append(round((float(channel[y, x]) - low) / span * (BINS - 1)))
            bins[y, x] = tuple(color)
    of_object, of_background = Counter(), Counter()
    for (y, x), color in bins.items():
        of_object[color] += float(probs[y, x])
        of_background[color] += 1 - float(probs[y, x])

    def log_odds(a, b):
        share = min(max(a / (a + b), EPS), 1 - EPS)
        return math.log(share / (1 - share))

    whole = log_odds(sum(of_object.values()), sum(of_background.values()))
    mean = sum(of_object.values()) / len(bins)
    found = torch.zeros(height, width)
    for (y, x), color in bins.items():
        others = of_object[color] - float(probs[y, x]) + mean
        behind = of_background[color] - (1 - float(probs[y, x])) + 1 - mean
        found[y, x] = log_odds(others, behind) - whole
    return found


def test_color_log_odds_are_those_of_two_histograms():
    probs = torch.rand(3, 9, 11)
    probs[:, 2:7, 3:9] = 1 - 1e-7
    images = torch.randint(0, 4, (3, 3, 9, 11)).float() - 1.3
    images[1] = torch.randn(3, 9, 11)
    images[2, 1] = 0.7  # a channel with one value
    found = color_log_odds(probs, images)
    for crop in range(3):
        expected = naive_color_log_odds(probs[crop], images[crop])
        assert expected.min() < -0.1 and expected.max() > 0.1
        torch.testing.assert_close(found[crop], expected, atol=1e-3, rtol=0)
        alone = color_log_odds(probs[crop : crop + 1], images[crop : crop + 1])[0]
        assert torch.equal(alone, found[crop])


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_no_object_or_nothing_else(value):
    found = color_log_odds(torch.full((1, 8, 8), value), torch.rand(1, 3, 8, 8))
    assert torch.equal(found, torch.zeros(1, 8, 8))


def test_cells_of_a_colour_of_their_own_do_not_confirm_themselves():
    images = torch.linspace(0, 1, BINS)[None, None, None].expand(1, 3, 1, BINS)
    probs = torch.rand(1, 1, BINS)
    found = color_log_odds(probs, images)
    torch.testing.assert_close(found, torch.zeros_like(found), atol=1e-4, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_precision(dtype):
    probs = torch.randint(0, 9, (2, 8, 8)).div(8).to(dtype)
    images = torch.randint(0, 4, (2, 3, 8, 8)).to(dtype)
    found = color_log_odds(probs, images)
    assert found.dtype == (torch.float64 if dtype is torch.float64 else torch.float32)
    exact = color_log_odds(probs.double(), images.double())
    torch.testing.assert_close(found.double(), exact, atol=1e-4, rtol=0)


@pytest.mark.parametrize("channel", [0, 1, 2])
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_colors_that_are_none_spoil_no_other_crop(value, channel):
    probs, images = torch.rand(3, 8, 8), torch.rand(3, 3, 8, 8)
    expected = color_log_odds(probs, images)
    images[1, channel, 2, 3] = value
    found = color_log_odds(probs, images)
    assert torch.equal(found[[0, 2]], expected[[0, 2]]) and found[1].isfinite().all()


def test_one_colour_after_resizing():
    for level in range(0, 256, 5):
        images = torch.full((1, 3, 448, 448), (level - 123.675) / 58.395)
        images = resize_maps(images, (128, 128))
        assert color_log_odds(torch.rand(1, 128, 128), images).abs().max() < 1e-3


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
def test_color_log_odds_on_a_gpu():
    """Bit by bit the same in every run, whatever the batch, and in the deterministic mode."""
    probs, images = torch.rand(16, 64, 64), torch.rand(16, 3, 64, 64)
    on_gpu = color_log_odds(probs.cuda(), images.cuda())
    torch.testing.assert_close(on_gpu.cpu(), color_log_odds(probs, images), atol=1e-3, rtol=0)
    torch.use_deterministic_algorithms(True)
    try:
        again = color_log_odds(probs[3:5].cuda(), images[3:5].cuda())
    finally:
        torch.use_deterministic_algorithms(False)
    assert torch.equal(on_gpu[3:5], again)
