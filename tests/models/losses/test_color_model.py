# SPDX-License-Identifier: Apache-2.0
import math
from collections import Counter

import torch

from mal_mmdet.models.losses import color_log_odds
from mal_mmdet.models.losses.color_model import BINS, EPS


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
    found = torch.zeros(height, width)
    for (y, x), color in bins.items():
        found[y, x] = log_odds(of_object[color], of_background[color]) - whole
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


def test_colors_that_say_nothing():
    half = torch.zeros(1, 8, 8)
    half[:, :4] = 1
    image = torch.rand(1, 3, 8, 8)
    for probs, images in ((half, torch.ones(1, 3, 8, 8)), (0 * half, image), (half + 1, image)):
        zero = torch.zeros(1, 8, 8)
        torch.testing.assert_close(color_log_odds(probs.clamp(max=1), images), zero)
