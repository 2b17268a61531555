# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest
from mmdet.structures.bbox import HorizontalBoxes

from mal_mmdet.datasets import CropBBox, ExpandBBox, RandomExpandBBox


def results(bbox, height=40, width=50):
    bbox = np.array(bbox, dtype=np.float32)
    return dict(
        img=np.zeros((height, width, 3), dtype=np.uint8),
        ori_bbox=bbox,
        gt_bboxes=HorizontalBoxes(bbox[None]),
    )


def test_fixed_expansion_multiplies_the_half_extents():
    crop = ExpandBBox(margin=0.3)(results([10, 10, 30, 20]))["crop_bbox"]
    assert crop.tolist() == [7, 8, 33, 22]  # 20 ± 13, and 15 ± 6.5 rounded outward


@pytest.mark.parametrize("sampler, largest", [("paired", 1.2), ("independent", 0.4)])
def test_random_margins(sampler, largest):
    np.random.seed(0)
    transform = RandomExpandBBox(margin=largest, sampler=sampler)
    margins = np.array([transform.sample_margins() for _ in range(20000)])
    assert margins.min() >= 0 and margins.max() <= largest
    # U(0, m) has mean m/2; the shared factor of a pair halves that, and its two sides add up
    # to m at most, where independent sides reach 2m.
    expected = largest / 4 if sampler == "paired" else largest / 2
    np.testing.assert_allclose(margins.mean(0), expected, rtol=0.03)
    pairs = margins[:, :2] + margins[:, 2:]
    assert (pairs.max() <= largest) == (sampler == "paired")


def test_a_box_is_clipped_to_the_image_in_the_crop():
    data = results([-10, 5, 30, 35])
    data["crop_bbox"] = np.array([-16, 0, 36, 40])
    data = CropBBox(size=104)(data)
    assert data["img"].shape == (104, 104, 3) and data["img_shape"] == (104, 104)
    expected = [[16 * 2, 5 * 2.6, 46 * 2, 35 * 2.6]]
    np.testing.assert_allclose(data["gt_bboxes"].tensor.numpy(), expected, rtol=1e-6)


def test_bad_options_are_named():
    with pytest.raises(ValueError, match=r"'both'.*paired.*independent"):
        RandomExpandBBox(margin=1.2, sampler="both")
    with pytest.raises(ValueError, match=r"'zeros'.*reflect.*wrap"):
        CropBBox(border="zeros")
