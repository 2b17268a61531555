# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest

from mal_mmdet.evaluation import boundary_iou


def naive_boundary(mask, distance):
    """Every pixel against every pixel of background, in an image framed by background."""
    framed = np.pad(mask, 1)
    holes = np.argwhere(~framed) - 1
    region = np.zeros_like(mask)
    for y, x in np.argwhere(mask):
        region[y, x] = np.abs(holes - (y, x)).max(1).min() <= distance
    return region


def naive(mask_a, mask_b, ratio):
    distance = max(1, round(ratio * np.sqrt(mask_a.shape[0] ** 2 + mask_a.shape[1] ** 2)))
    a, b = (naive_boundary(mask, distance) for mask in (mask_a, mask_b))
    return (a & b).sum() / (a | b).sum()


def blob(rng, height, width):
    """A few overlapping rectangles with a hole; some touch the image's border."""
    mask = np.zeros((height, width), dtype=bool)
    for value in (True, True, True, False):
        y, x = rng.integers(0, height - 3), rng.integers(0, width - 3)
        mask[y : y + rng.integers(2, height), x : x + rng.integers(2, width)] = value
        if not value:
            mask[y, x] = False
    mask[height // 2, width // 2] = True
    return mask


@pytest.mark.parametrize("ratio", [0.02, 0.05, 0.1])
def test_against_brute_force(ratio):
    rng = np.random.default_rng(0)
    found = []
    for _ in range(12):
        masks = [blob(rng, 31, 43) for _ in range(2)]
        found.append(boundary_iou(*masks, ratio))
        assert found[-1] == pytest.approx(naive(*masks, ratio))
    assert min(found) > 0 and max(found) < 1


def test_the_images_border_is_contour():
    """Two full images but for the inner part: only the frame of d pixels counts."""
    a = np.ones((50, 50), dtype=bool)
    b = a.copy()
    b[20:30, 20:30] = False
    frame = 50 * 50 - 48 * 48  # d is 1: 0.02 of a diagonal of 71
    ring = 12 * 12 - 10 * 10
    assert boundary_iou(a, b) == pytest.approx(frame / (frame + ring))


def test_a_mask_far_from_the_other_and_empty_ones():
    a, b = np.zeros((2, 20, 30), dtype=bool)
    a[2:5, 2:5] = True
    assert boundary_iou(a, a) == 1
    assert boundary_iou(a, b) == boundary_iou(b, b) == 0


def test_inner_pixels_do_not_count():
    a = np.zeros((100, 100), dtype=bool)
    a[10:90, 10:90] = True
    b = a.copy()
    b[40:60, 40:60] = False
    mask_iou = (a & b).sum() / (a | b).sum()
    assert mask_iou > 0.9 and boundary_iou(a, b) < 0.8


def test_shapes_must_agree():
    with pytest.raises(ValueError, match=r"\(4, 5\) and \(5, 4\)"):
        boundary_iou(np.ones((4, 5), dtype=bool), np.ones((5, 4), dtype=bool))
