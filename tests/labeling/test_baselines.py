# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest
from mmdet.structures.mask import PolygonMasks
from pycocotools import mask as mask_utils

from mal_mmdet.evaluation import evaluate_label_files
from mal_mmdet.labeling import read_coco, write_json
from mal_mmdet.labeling.baselines import (
    BASELINES,
    fill_boxes,
    grabcut,
    inscribed_ellipse,
    label_with_baseline,
)
from tests.tiny_sets import make_lvis


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
    boxes = read_coco(demo / "boxes_val.json")
    crowd = {**boxes["annotations"][0], "id": 99, "iscrowd": 1, "bbox": [-5.0, 4.0, 25.0, 10.0]}
    boxes["annotations"].append(crowd)
    del boxes["annotations"][0]["iscrowd"]
    write_json(tmp_path / "boxes.json", boxes)
    out = tmp_path / "labels.json"
    label_with_baseline(method, tmp_path / "boxes.json", demo / "val", out)
    labels = read_coco(out)
    # A crowd is not labeled: its part of the image stands for it.
    crowd_mask = labels["annotations"].pop()["segmentation"]
    assert mask_utils.toBbox(crowd_mask).tolist() == [0, 4, 20, 10]
    for before, after in zip(boxes["annotations"][:-1], labels["annotations"], strict=True):
        assert before["bbox"] == after["bbox"] and before["id"] == after["id"]
        assert mask_utils.area(after["segmentation"]) == after["area"] > 0 == after["iscrowd"]
        if method == "box":
            assert mask_utils.toBbox(after["segmentation"]).tolist() == after["bbox"]
    assert 0.2 < evaluate_label_files(out, demo / "instances_val.json")["miou"] < 0.95


def test_filled_boxes_are_scaled_by_detectors(tmp_path):
    """mmdet scales polygons in place, which must not cut off fractions."""
    entry = dict(id=1, file_name="x.jpg", width=90, height=70)
    ann = dict(id=1, image_id=1, category_id=1, bbox=[5, 6, 30, 20])
    coco = dict(images=[entry], annotations=[ann], categories=[dict(id=1, name="a")])
    write_json(tmp_path / "boxes.json", coco)
    fill_boxes(tmp_path / "boxes.json", tmp_path / "filled.json")
    [found] = read_coco(tmp_path / "filled.json")["annotations"]
    masks = PolygonMasks([[np.array(p) for p in found["segmentation"]]], 70, 90)
    [[polygon]] = masks.resize((91, 117)).masks
    np.testing.assert_allclose(polygon, np.multiply([5, 6, 35, 6, 35, 26, 5, 26], 1.3))
    assert found["iscrowd"] == 0 and found["area"] == 600


def test_bad_input_is_named(demo, tmp_path):
    with pytest.raises(ValueError, match=r"00001\.jpg cannot be read"):
        label_with_baseline("box", demo / "boxes_val.json", tmp_path, tmp_path / "out.json")
    assert not (tmp_path / "out.json").exists()
    coco = read_coco(demo / "boxes_val.json")
    coco["images"][0]["width"] += 5
    write_json(tmp_path / "boxes.json", coco)
    with pytest.raises(ValueError, match=r"00001\.jpg has .* pixels, but the COCO file says"):
        label_with_baseline("box", tmp_path / "boxes.json", demo / "val", tmp_path / "out.json")


def test_labels_lvis_whose_images_have_no_names(tmp_path):
    make_lvis(tmp_path)
    ann_file, out = tmp_path / "annotations/lvis_v1_train.json", tmp_path / "box.json"
    label_with_baseline("box", ann_file, tmp_path, out)
    assert [ann["area"] for ann in read_coco(out)["annotations"]] == [60 * 50, 70 * 60, 80 * 80]
