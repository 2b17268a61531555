# SPDX-License-Identifier: Apache-2.0
import hashlib
import json

import numpy as np
from PIL import Image
from pycocotools import mask as mask_utils

from mal_mmdet.datasets.demo_dataset import make_demo_dataset, outlines


def digest(folder):
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    return [(str(p.relative_to(folder)), hashlib.sha256(p.read_bytes()).digest()) for p in files]


def test_same_seed_same_bytes(demo, tmp_path):
    make_demo_dataset(tmp_path / "again", seed=3, num_train=8, num_val=4)
    make_demo_dataset(tmp_path / "other", seed=4, num_train=8, num_val=4)
    assert digest(tmp_path / "again") == digest(demo)
    assert digest(tmp_path / "other") != digest(demo)


def test_more_images_do_not_change_the_first(demo, tmp_path):
    make_demo_dataset(tmp_path, seed=3, num_train=9, num_val=4)
    for path in (demo / "train").iterdir():
        assert (tmp_path / "train" / path.name).read_bytes() == path.read_bytes()


def test_boxes_are_tight_and_poor_masks(tmp_path):
    make_demo_dataset(tmp_path, seed=0, num_train=40, num_val=0)
    coco = json.loads((tmp_path / "instances_train.json").read_text())
    ious, holes = [], 0
    for ann in coco["annotations"]:
        mask = mask_utils.decode(ann["segmentation"]).astype(bool)
        x, y, w, h = (int(v) for v in ann["bbox"])
        assert mask.sum() == ann["area"] == mask[y : y + h, x : x + w].sum()
        assert mask[y].any() and mask[y + h - 1].any()
        assert mask[:, x].any() and mask[:, x + w - 1].any()
        ious.append(ann["area"] / (w * h))
    assert np.mean(ious) <= 0.6
    assert len({a["category_id"] for a in coco["annotations"]}) >= 6
    holes = [c["name"] for c in coco["categories"] if any(v == 0 for v, _ in outlines(c["name"]))]
    assert len(holes) >= 2
    # No pixel belongs to two objects of an image.
    for image in coco["images"]:
        masks = [
            mask_utils.decode(a["segmentation"])
            for a in coco["annotations"]
            if a["image_id"] == image["id"]
        ]
        assert np.sum(masks, 0).max() == 1
        with Image.open(tmp_path / "train" / image["file_name"]) as picture:
            assert picture.size == (image["width"], image["height"])


def test_boxes_files_hold_no_mask(demo):
    for split in ("train", "val"):
        boxes = json.loads((demo / f"boxes_{split}.json").read_text())
        truth = json.loads((demo / f"instances_{split}.json").read_text())
        assert "segmentation" not in json.dumps(boxes)
        assert [a["bbox"] for a in boxes["annotations"]] == [
            a["bbox"] for a in truth["annotations"]
        ]
        assert all(a["area"] == a["bbox"][2] * a["bbox"][3] for a in boxes["annotations"])
