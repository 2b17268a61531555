# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest
from mmpretrain.datasets import ColorJitter
from scipy.ndimage import gaussian_filter

from mal_mmdet.datasets import FastColorJitter, RandomGaussianBlur
from mal_mmdet.datasets.demo_dataset import load_photos
from mal_mmdet.datasets.transforms.photometric import blend


@pytest.fixture(scope="module")
def photo():
    return load_photos(("astronaut.png",))["astronaut.png"][::4, ::4, ::-1].copy()


@pytest.mark.parametrize("factor", [0.0, 0.6, 1.0, 1.4])
def test_blend_rounds_and_clips(photo, factor):
    for other in (0, 117, photo[::-1].copy()):
        exact = (factor * photo + (1 - factor) * np.asarray(other, float)).clip(0, 255)
        assert np.abs(blend(photo, other, factor) - exact).max() < 0.51


def test_jitter_changes_colours_as_the_original_does(photo):
    """The same draws in the same order; only truncation and rounding are apart."""
    options = dict(brightness=0.4, contrast=0.4, saturation=0.2, hue=0.0001)
    transforms = ColorJitter(**options, backend="cv2"), FastColorJitter(**options)
    for seed in range(10):
        jittered = []
        for transform in transforms:
            np.random.seed(seed)
            jittered.append(transform(dict(img=photo.copy()))["img"].astype(int))
            draw = np.random.rand()
        np.random.seed(seed)
        transforms[0](dict(img=photo.copy()))
        assert np.random.rand() == draw
        assert np.abs(jittered[0] - photo).mean() > 3
        assert np.abs(jittered[0] - jittered[1]).mean() < 2


@pytest.mark.parametrize("name", ["brightness", "contrast", "saturation", "hue"])
def test_jitter_of_one_kind_leaves_the_others(photo, name):
    """As the original's, which gets the same numbers."""
    options = {name: 0.3}
    found = []
    for kind in (FastColorJitter, ColorJitter):
        np.random.seed(3)
        found.append(kind(**options)(dict(img=photo))["img"].astype(int))
    assert np.abs(found[0] - found[1]).mean() < 1 < np.abs(found[0] - photo).mean()


def test_blur_is_a_gaussian_of_the_drawn_width(photo):
    blur = RandomGaussianBlur(prob=1.0, sigma=(1.5, 1.5))
    naive = np.stack(
        [gaussian_filter(photo[..., k].astype(float), 1.5, mode="mirror") for k in range(3)], 2
    )
    assert np.abs(blur(dict(img=photo))["img"] - naive).max() < 2


def test_blur_strikes_as_often_as_it_should(photo):
    np.random.seed(0)
    blur = RandomGaussianBlur(prob=0.3, sigma=(1.0, 2.0))
    img = photo[:8, :8]
    struck = sum(blur(dict(img=img))["img"] is not img for _ in range(1000))
    assert 250 < struck < 350
