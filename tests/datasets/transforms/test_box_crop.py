# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest
from mmdet.structures.bbox import HorizontalBoxes

from mal_mmdet.datasets import CropBBox, ExpandBBox, PackBoxCrop, RandomExpandBBox


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


def test_several_margins_make_the_crops_that_each_makes():
    img = np.random.randint(0, 256, (40, 50, 3), dtype=np.uint8)
    data = results([10, 10, 30, 20]) | dict(
        img=img, area=200.0, gt_bboxes_labels=np.zeros(1, dtype=np.int64)
    )

    def packed(margin):
        sample = dict(data)
        for transform in (ExpandBBox(margin=margin), CropBBox(size=16), PackBoxCrop()):
            sample = transform(sample)
        return sample["inputs"], sample["data_samples"].gt_instances

    margins = [0.3, 0.1, 0.6]
    views, box = packed(margins)
    alone = [packed(margin) for margin in margins]
    assert views.shape == (3, 3, 16, 16) and box.view_bboxes.shape == (1, 3, 4)
    for view, frame, (crop, other) in zip(views, box.view_bboxes[0], alone):
        assert (view == crop).all() and (frame == other.crop_bboxes[0]).all()
    assert (box.crop_bboxes == alone[0][1].crop_bboxes).all()
    assert (box.bboxes == alone[0][1].bboxes).all()
    assert "view_bboxes" not in alone[0][1]


@pytest.mark.parametrize("sampler, largest", [("paired", 1.2), ("independent", 0.4)])
def test_random_margins(sampler, largest):
    np.random.seed(0)
    transform = RandomExpandBBox(margin=largest, sampler=sampler)
    margins = np.concatenate([transform.sample_margins() for _ in range(20000)])
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
    for margin in (-0.1, [0.2, -0.1], [], [[0.2]], float("nan"), [float("inf")]):
        with pytest.raises(ValueError, match=r"margin is .* from 0 up, or several"):
            ExpandBBox(margin=margin)
    with pytest.raises(ValueError, match=r"margin is \[0.2, 1.2\], but training takes one"):
        RandomExpandBBox(margin=[0.2, 1.2])
