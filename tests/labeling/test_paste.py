# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from mmengine.structures import InstanceData

from mal_mmdet.labeling import (
    MaskWindow,
    encode_mask,
    encode_window,
    mask_window,
    mask_windows,
    paste_mask,
    pixel_span,
    threshold_for_area,
)


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


def test_a_window_is_encoded_as_its_full_mask():
    rng = np.random.default_rng(0)
    for _ in range(500):
        height, width = (int(v) for v in rng.integers(1, 12, 2))
        h, w = int(rng.integers(1, height + 1)), int(rng.integers(1, width + 1))
        x0, y0 = int(rng.integers(0, width - w + 1)), int(rng.integers(0, height - h + 1))
        mask = rng.random((h, w)) < rng.choice([0, 0.3, 0.8, 1])
        full = np.zeros((height, width), dtype=bool)
        full[y0 : y0 + h, x0 : x0 + w] = mask
        window = MaskWindow(x0, y0, mask, 1.0)
        assert encode_window(window, (height, width)) == encode_mask(full)


@pytest.mark.parametrize("size", [16, 200])
def test_a_window_is_cut_out_of_what_torch_resizes(size):
    prob = torch.rand(48, 48)
    crop_bbox = [-3, 5, -3 + size, 5 + size + 7]
    bbox = [size * 0.1, size * 0.2 + 5, size * 0.8, size * 0.9 + 5]
    window = mask_window(prob.numpy(), crop_bbox, bbox, 0.5, (size, size))
    resized = F.interpolate(prob[None, None], (size + 7, size), mode="bilinear")[0, 0]
    rows, columns = pixel_span(bbox[1], bbox[3], size), pixel_span(bbox[0], bbox[2], size)
    expected = resized[rows[0] - 5 : rows[1] - 5, columns[0] + 3 : columns[1] + 3]
    sure = (expected - 0.5).abs() > 1e-5
    assert window.x0 == columns[0] and window.y0 == rows[0]
    assert np.array_equal(window.mask[sure], (expected > 0.5).numpy()[sure])
    assert window.score == pytest.approx(float(expected[expected > 0.5].mean()), abs=1e-3)


def test_windows_of_an_image_and_none_for_what_is_not_finite():
    probs, quality = torch.rand(3, 8, 8), torch.tensor([0.5, torch.nan, 0.7])
    crops = torch.tensor([[0.0, 0, 20, 20], [0, 0, 20, 20], [10, 5, 30, 25]])
    boxes, thresholds = crops + torch.tensor([2.0, 2, -2, -2]), torch.tensor([0.25, 0.5, 0.75])
    pred = dict(mask_probs=probs, crop_bboxes=crops, bboxes=boxes, thresholds=thresholds)
    first, none, last = mask_windows(pred | dict(mask_quality=quality), (40, 50))
    assert none is None
    for window, i in ((first, 0), (last, 2)):
        box = crops[i].tolist(), boxes[i].tolist(), float(thresholds[i])
        expected = mask_window(probs[i].numpy(), *box, (40, 50))
        assert (window.x0, window.y0, window.score) == (expected.x0, expected.y0, expected.score)
        np.testing.assert_array_equal(window.mask, expected.mask)


@pytest.mark.parametrize("kind", ["instances", "dictionary"])
def test_masks_wait_for_a_gpu(kind):
    """What a prediction holds is there only after its ``ready``."""
    pred = InstanceData(
        mask_probs=torch.zeros(1, 8, 8),
        mask_quality=torch.tensor([torch.nan]),
        crop_bboxes=torch.tensor([[0, 0, 8, 8]]),
        bboxes=torch.tensor([[1.0, 1.0, 7.0, 7.0]]),
        thresholds=torch.tensor([0.5]),
    )
    probs, quality = pred.mask_probs, pred.mask_quality

    def send():
        probs.fill_(0.9)
        quality.fill_(0.7)

    pred.set_metainfo(dict(ready=send))
    (window,) = mask_windows(pred if kind == "instances" else pred.to_dict(), (8, 8))
    assert window.mask.all() and window.mask.shape == (6, 6)


def test_probabilities_that_are_not_finite_give_an_empty_mask():
    prob = np.full((4, 4), np.nan, dtype=np.float32)
    window = mask_window(prob, [0, 0, 8, 8], [1, 1, 7, 7], 0.5, (8, 8))
    assert not window.mask.any() and np.isnan(window.score)
