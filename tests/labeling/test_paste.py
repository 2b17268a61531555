# SPDX-License-Identifier: Apache-2.0
import pytest
import torch

from mal_mmdet.labeling import paste_mask, pixel_span, threshold_for_area


@pytest.mark.parametrize(
    "low, high, expected",
    [
        (2.0, 5.0, (2, 5)),
        (2.4, 5.4, (2, 5)),
        (2.6, 5.6, (3, 6)),
        (5.6, 5.9, (5, 6)),  # holds no pixel centre
        (-3.0, 4.0, (0, 4)),
        (7.0, 99.0, (7, 10)),
        (-0.3, 0.2, (0, 1)),
        (9.7, 30.0, (9, 10)),
    ],
)
def test_pixel_span(low, high, expected):
    assert pixel_span(low, high, 10) == expected


def test_thresholds_by_size():
    assert threshold_for_area(0.3, 1e9) == 0.3
    assert threshold_for_area([0.2], 1e9) == 0.2
    areas = (32.0**2, 32.0**2 + 1, 96.0**2, 96.0**2 + 1)
    assert [threshold_for_area([0.1, 0.2, 0.3], a) for a in areas] == [0.1, 0.2, 0.2, 0.3]
    with pytest.raises(ValueError, match=r"\[0\.1, 0\.2\].*one number, or three"):
        threshold_for_area([0.1, 0.2], 5)


def test_nothing_outside_box_and_image():
    out = torch.zeros(20, 20, dtype=torch.bool)
    score = paste_mask(torch.ones(8, 8), [-4, 2, 14, 14], [-2.0, 4.0, 10.0, 12.0], 0.5, out)
    expected = torch.zeros(20, 20, dtype=torch.bool)
    expected[4:12, 0:10] = True
    assert torch.equal(out, expected) and score == 1


def test_every_box_gets_a_mask():
    prob = torch.zeros(8, 8)
    prob[2, 3] = 0.04
    out = torch.zeros(8, 8, dtype=torch.bool)
    score = paste_mask(prob, [0, 0, 8, 8], [1, 1, 7, 7], 0.1, out)
    assert out.nonzero().tolist() == [[2, 3]] and abs(score - 0.04) < 1e-6
    out = torch.zeros(8, 8, dtype=torch.bool)
    paste_mask(torch.zeros(8, 8), [0, 0, 8, 8], [1, 1, 7, 7], 0.1, out)
    assert out.sum() == 36
