# SPDX-License-Identifier: Apache-2.0
"""Every data set's own format: boxes in, labels out, and read by stock phase 2."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from mmdet.registry import DATASETS, MODELS
from mmengine.config import Config
from mmengine.runner import Runner
from pycocotools import mask as mask_utils

from mal_mmdet.apis import generate_labels
from mal_mmdet.datasets import boxes_to_coco, build_training_boxes
from mal_mmdet.labeling import read_coco, write_json
from tests.conftest import ROOT, tiny_config
from tests.tiny_sets import CONVERTED, TINY_SETS, config_path, set_data_root

LABELED_FILES = {
    "lvis-v1": "lvis_v1_train",
    "objects365v2": "zhiyuan_objv2_train",
    "cityscapes": "instancesonly_filtered_gtFine_train",
    "voc": "boxes_trainval0712",
    "openimages": "boxes_train",
}
IMAGES = {
    "lvis-v1": "",
    "objects365v2": "train",
    "cityscapes": "leftImg8bit/train",
    "voc": "",
    "openimages": "OpenImages/train",
}
IMAGE_FACTS = {"img_id", "img_path", "ori_shape", "img_shape", "flip", "flip_direction"}
BOX_FACTS = {"bboxes", "ori_bboxes", "crop_bboxes", "areas", "labels"}
# Boxes to label, which are those to train on, and in VOC one difficult box.
NUM_LABELED = {"lvis-v1": 3, "objects365v2": 2, "cityscapes": 2, "voc": 3, "openimages": 2}


def small_train_dataset(name, root):
    """The training set of a config, with crops of 32 pixels."""
    cfg = Config.fromfile(config_path(name))
    set_data_root(cfg.train_dataloader, root)
    cfg.train_dataloader.dataset.pipeline[1].size = 32
    return cfg.train_dataloader.dataset


@pytest.mark.parametrize("name", TINY_SETS)
def test_reads_the_boxes_to_train_on_and_no_others(name, tmp_path):
    expected = TINY_SETS[name](tmp_path)
    config = small_train_dataset(name, tmp_path)
    dataset = DATASETS.build(config)
    assert len(dataset) == len(expected)
    for i, (file, label, bbox) in enumerate(expected):
        sample = dataset[(i, 3)]
        assert sample["inputs"]["student"].shape == (3, 32, 32)
        packed = sample["data_samples"]["student"]
        assert packed.img_path == str(tmp_path / file)
        assert packed.gt_instances.labels.tolist() == [label]
        torch.testing.assert_close(packed.gt_instances.ori_bboxes, torch.tensor([bbox]).float())
        assert set(packed.gt_instances.all_keys()) == BOX_FACTS


@pytest.mark.parametrize("name", ["lvis-v1", "cityscapes"])
def test_a_mask_in_the_file_never_reaches_a_sample(name, tmp_path):
    TINY_SETS[name](tmp_path)
    dataset = DATASETS.build(small_train_dataset(name, tmp_path))
    assert "mask" in dataset.dataset.get_data_info(0)["instances"][0]  # mmdet's class has read it
    before = [dataset[(i, 3)] for i in range(len(dataset))]
    path = tmp_path / "annotations" / f"{LABELED_FILES[name]}.json"
    coco = json.loads(path.read_text())
    for ann in coco["annotations"]:
        ann["segmentation"], ann["area"] = [[0, 0, 9, 0, 0, 9]], 40.5
    path.write_text(json.dumps(coco))
    dataset = DATASETS.build(small_train_dataset(name, tmp_path))
    for i, old in enumerate(before):
        new = dataset[(i, 3)]
        for view in ("student", "teacher"):
            assert torch.equal(old["inputs"][view], new["inputs"][view])
        assert old["data_samples"].keys() == new["data_samples"].keys() == {"student"}
        a, b = (s["data_samples"]["student"] for s in (old, new))
        assert a.keys() == b.keys() == ["gt_instances"] and a.metainfo == b.metainfo
        assert set(a.metainfo) == IMAGE_FACTS
        assert set(a.gt_instances.all_keys()) == set(b.gt_instances.all_keys()) == BOX_FACTS
        for key, value in a.gt_instances.items():
            torch.testing.assert_close(value, b.gt_instances[key])


@pytest.fixture(scope="module")
def trained(demo, tmp_path_factory):
    """A tiny network, with the weights that it could have from the demo data."""
    folder = tmp_path_factory.mktemp("trained")
    cfg = tiny_config(demo, folder, **{"model.thresholds": 0.5})
    torch.manual_seed(0)
    model = MODELS.build(cfg.model)
    model.init_weights()
    meta = dict(dataset_meta=dict(classes=("star", "ring")))
    torch.save(dict(state_dict=model.state_dict(), meta=meta), folder / "mal.pth")
    return cfg, folder / "mal.pth"


def label(name, root, trained) -> Path:
    """Labels a tiny data set with its config and the weights from another data set."""
    cfg, checkpoint = trained
    cfg = cfg.copy()
    cfg.test_dataloader = Config.fromfile(config_path(name)).test_dataloader
    cfg.test_dataloader.num_workers = 0
    cfg.test_dataloader.dataset.pipeline[1].size = 32
    cfg.work_dir = str(root / "work")
    boxes = root / "annotations" / f"{LABELED_FILES[name]}.json"
    if name in CONVERTED:
        source = Config.fromfile(config_path(name))
        set_data_root(source.train_dataloader, root)
        write_json(boxes, boxes_to_coco(build_training_boxes(source), root / CONVERTED[name]))
    out = boxes.with_name(f"{boxes.stem}_mal.json")
    assert generate_labels(cfg, checkpoint, boxes, root / IMAGES[name], out) == 0
    return out


@pytest.fixture(scope="module")
def labeled(trained, tmp_path_factory):
    """Folder and label file of each tiny data set."""
    made = {}
    for name, make in TINY_SETS.items():
        root = tmp_path_factory.mktemp(name)
        make(root)
        made[name] = root, label(name, root, trained)
    return made


@pytest.mark.parametrize("name", TINY_SETS)
def test_labels_keep_everything_and_add_masks(name, labeled):
    root, out = labeled[name]
    before = json.loads((root / "annotations" / f"{LABELED_FILES[name]}.json").read_text())
    after = json.loads(out.read_text())
    assert after["info"].pop("mal_mmdet")["thresholds"] == 0.5
    assert after["info"] == before.get("info", {})
    assert {k: v for k, v in after.items() if k not in ("annotations", "info")} == {
        k: v for k, v in before.items() if k not in ("annotations", "info")
    }
    number = 0
    for old, new in zip(before["annotations"], after["annotations"], strict=True):
        if old.get("iscrowd"):
            continue
        rle = new.pop("segmentation")
        old.pop("segmentation", None), old.pop("area")
        assert new.pop("area") == mask_utils.area(rle) > 0
        assert new.pop("source") == "mal" and 0 <= new.pop("mask_quality") <= 1
        assert dict(iscrowd=0) | old == new
        x, y, w, h = (round(v) for v in old["bbox"])
        mask = mask_utils.decode(rle)
        assert mask.sum() == mask[y : y + h, x : x + w].sum()
        number += 1
    assert number == NUM_LABELED[name]
    report = json.loads(Path(f"{out}.report.json").read_text())
    assert report == dict(labeled=number, failed=[], low_quality=0)


def test_lvis_keeps_what_its_evaluation_needs(labeled):
    first, second = read_coco(labeled["lvis-v1"][1])["images"]
    assert first["not_exhaustive_category_ids"] == [7] and first["neg_category_ids"] == [3, 5]
    assert second["not_exhaustive_category_ids"] == [8] and "file_name" not in second


def phase_2_configs():
    """The configs in docs/datasets.md, by the data set that they are for."""
    text = (ROOT / "docs/datasets.md").read_text()
    sections = re.split(r"^## ", text, flags=re.MULTILINE)
    blocks = {s.split("\n")[0]: re.findall(r"```python\n(.*?)```", s, re.DOTALL) for s in sections}
    titles = {
        "lvis-v1": "LVIS v1",
        "objects365v2": "Objects365 v2",
        "cityscapes": "Cityscapes",
        "voc": "PASCAL VOC",
        "openimages": "OpenImages v6",
    }
    return {name: blocks[title][0] for name, title in titles.items()}


@pytest.mark.parametrize("name", TINY_SETS)
def test_the_documented_phase_2_reads_the_labels(name, labeled):
    root, out = labeled[name]
    documented = {"voc": "data/VOCdevkit", "openimages": "data/OpenImages"}
    text = phase_2_configs()[name].replace(documented.get(name, "\0"), str(root))
    cfg = Config.fromstring(text, ".py")
    dataset = cfg.train_dataloader.dataset
    set_data_root(dataset, root)
    inner = dataset
    while "dataset" in inner:
        inner = inner.dataset
    assert root / inner.ann_file == out
    inner.pipeline = [
        dict(type="LoadImageFromFile"),
        dict(type="LoadAnnotations", with_bbox=True, with_mask=True),
        dict(type="PackDetInputs"),
    ]
    dataset = DATASETS.build(inner)
    classes = dataset.metainfo["classes"]
    head = cfg.model.roi_head
    number = 601 if name == "openimages" else len(classes)  # the tiny set has two classes
    assert head.bbox_head.num_classes == head.mask_head.num_classes == number
    assert compile(cfg.pretty_text, name, "exec")  # as a runner writes it beside its logs
    labels = read_coco(out)
    names = {c["id"]: c["name"] for c in labels["categories"]}
    number = 0
    for i in range(len(dataset)):
        instances = dataset[i]["data_samples"].gt_instances
        anns = [
            a
            for a in labels["annotations"]
            if a["image_id"] == dataset.get_data_info(i)["img_id"] and not a.get("iscrowd")
        ]
        expected = np.stack([mask_utils.decode(a["segmentation"]) for a in anns])
        np.testing.assert_array_equal(instances.masks.to_ndarray(), expected)
        if name != "lvis-v1":  # mmdet's names for LVIS are those of the full file
            found = [classes[k] for k in instances.labels.tolist()]
            assert found == [names[a["category_id"]] for a in anns]
        number += len(anns)
    assert number == NUM_LABELED[name]


def test_the_test_loop_runs_without_human_masks(labeled, trained):
    """``tools/test.py --show-dir`` draws, and finds nothing to evaluate."""
    root, _ = labeled["voc"]
    cfg, checkpoint = trained[0].copy(), trained[1]
    voc = Config.fromfile(config_path("voc"))
    cfg.test_dataloader, cfg.test_evaluator = voc.test_dataloader, voc.test_evaluator
    set_data_root(cfg.test_dataloader, root)
    cfg.test_dataloader.num_workers = 0
    cfg.test_dataloader.dataset.pipeline[1].size = 32
    cfg.work_dir, cfg.load_from = str(root / "work"), str(checkpoint)
    assert Runner.from_cfg(cfg).test() == {}


def test_an_lvis_image_without_any_name_is_reported(trained, tmp_path):
    TINY_SETS["lvis-v1"](tmp_path)
    path = tmp_path / "annotations/lvis_v1_train.json"
    coco = json.loads(path.read_text())
    del coco["images"][0]["coco_url"]
    path.write_text(json.dumps(coco))
    cfg, checkpoint = trained
    cfg = cfg.copy()
    cfg.work_dir = str(tmp_path / "work")
    out = tmp_path / "labels.json"
    assert generate_labels(cfg, checkpoint, path, tmp_path, out) == 1
    (failed,) = json.loads(Path(f"{out}.report.json").read_text())["failed"]
    assert failed["id"] == 1
    assert failed["problem"] == (
        "'file_name' of its image 391895 is None, expected a text; an image needs a 'file_name', "
        "or a 'coco_url' in its place"
    )
    assert [a["id"] for a in read_coco(out)["annotations"]] == [2, 3]
