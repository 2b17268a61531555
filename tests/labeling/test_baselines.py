# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest
from pycocotools import mask as mask_utils

from mal_mmdet.evaluation import evaluate_label_files
from mal_mmdet.labeling import read_coco
from mal_mmdet.labeling.baselines import (
    BASELINES,
    grabcut,
    inscribed_ellipse,
    label_with_baseline,
)


def test_ellipse_fills_its_share_of_the_box():
    mask = inscribed_ellipse(np.zeros((200, 300, 3)), 50, 20, 250, 180)
    assert abs(mask.sum() / (200 * 160) - np.pi / 4) < 0.005
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    assert (rows[0], rows[-1], columns[0], columns[-1]) == (20, 179, 50, 249)


def test_grabcut_finds_a_plain_disc_and_falls_back_to_the_box():
    y, x = np.mgrid[:80, :80]
    disc = (x - 40) ** 2 + (y - 40) ** 2 < 400
    noise = np.random.default_rng(0).integers(0, 20, (80, 80, 3))
    image = (np.where(disc[..., None], 200, 50) + noise).astype(np.uint8)
    found = grabcut(image, 20, 20, 60, 60)
    assert (found & disc).sum() / (found | disc).sum() > 0.95
    assert grabcut(image, 0, 0, 80, 80).all()


@pytest.mark.parametrize("method", BASELINES)
def test_label_files(demo, tmp_path, method):
    out = tmp_path / "labels.json"
    label_with_baseline(method, demo / "boxes_val.json", demo / "val", out)
    boxes, labels = read_coco(demo / "boxes_val.json"), read_coco(out)
    for before, after in zip(boxes["annotations"], labels["annotations"], strict=True):
        assert before["bbox"] == after["bbox"] and before["id"] == after["id"]
        assert mask_utils.area(after["segmentation"]) == after["area"] > 0
        if method == "box":
            assert mask_utils.toBbox(after["segmentation"]).tolist() == after["bbox"]
    assert 0.2 < evaluate_label_files(out, demo / "instances_val.json")["miou"] < 0.95


def test_bad_input_is_named(demo, tmp_path):
    with pytest.raises(ValueError, match=r"00001\.jpg cannot be read"):
        label_with_baseline("box", demo / "boxes_val.json", tmp_path, tmp_path / "out.json")
    assert not (tmp_path / "out.json").exists()
