# SPDX-License-Identifier: Apache-2.0
import json
import logging
import re

import pytest
from mmdet.registry import DATASETS

from mal_mmdet.labeling import read_coco


def build(path, **options):
    return DATASETS.build(
        dict(type="CocoBoxDataset", ann_file=str(path), data_prefix=dict(img="imgs"), **options)
    )


def test_keeps_ids_places_and_classes_and_reads_no_mask(demo):
    truth = read_coco(demo / "instances_train.json")
    dataset = build(demo / "instances_train.json")
    assert dataset.metainfo["classes"] == tuple(c["name"] for c in truth["categories"])
    instances = [i for k in range(len(dataset)) for i in dataset.get_data_info(k)["instances"]]
    assert len(instances) == len(truth["annotations"])
    for instance in instances:
        ann = truth["annotations"][instance["ann_index"]]
        x, y, w, h = ann["bbox"]
        assert instance["ann_id"] == ann["id"]
        assert instance["bbox"] == [x, y, x + w, y + h]
        assert instance["bbox_label"] == ann["category_id"] - 1
        assert set(instance) == {"bbox", "bbox_label", "ignore_flag", "ann_id", "ann_index"}
    assert dataset.get_data_info(0)["img_path"] == "imgs/00001.jpg"


def test_says_which_annotations_it_leaves_out(demo, tmp_path, monkeypatch):
    coco = read_coco(demo / "boxes_train.json")
    coco["annotations"][2]["bbox"][2] = -3.0
    path = tmp_path / "bad.json"
    path.write_text(json.dumps(coco))
    messages = []
    monkeypatch.setattr(
        "mal_mmdet.datasets.coco_box_dataset.print_log",
        lambda text, logger, level: messages.append((level, text)),
    )
    dataset = build(path)
    ((level, text),) = messages
    assert level == logging.WARNING
    assert f"annotation {coco['annotations'][2]['id']} (annotations[2]): bbox" in text
    assert "1 of" in text and str(path) in text
    kept = sum(len(dataset.get_data_info(k)["instances"]) for k in range(len(dataset)))
    assert kept == len(coco["annotations"]) - 1


@pytest.mark.parametrize(
    "convert, words",
    [
        (lambda x, y, w, h: [x, y, x + w, y + h], r"\d+ of \d+ boxes reach out .* as corners"),
        (lambda x, y, w, h: [x / 192, y / 192, w / 192, h / 192], "as fractions of an image"),
        (lambda x, y, w, h: [x, y, w, h], None),
    ],
)
def test_boxes_that_may_be_no_cocos(demo, tmp_path, monkeypatch, convert, words):
    coco = read_coco(demo / "boxes_train.json")
    for ann in coco["annotations"]:
        ann["bbox"] = convert(*ann["bbox"])
    path = tmp_path / "boxes.json"
    path.write_text(json.dumps(coco))
    texts = []
    monkeypatch.setattr(
        "mal_mmdet.datasets.coco_box_dataset.print_log",
        lambda text, logger, level: texts.append(text),
    )
    build(path)
    doubts = [text for text in texts if "Expected are x, y, width and height" in text]
    assert len(doubts) == (words is not None)
    assert not words or re.search(words, doubts[0])


def test_classes_that_are_chosen(demo):
    names = [category["name"] for category in read_coco(demo / "boxes_val.json")["categories"]]
    chosen = [names[4], names[1]]
    found = {}
    for key, metainfo in dict(all=None, chosen=dict(classes=chosen)).items():
        dataset = build(demo / "boxes_val.json", metainfo=metainfo)
        classes = dataset.metainfo["classes"]
        found[key] = {
            instance["ann_id"]: classes[instance["bbox_label"]]
            for i in range(len(dataset))
            for instance in dataset.get_data_info(i)["instances"]
        }
    expected = {ann_id: name for ann_id, name in found["all"].items() if name in chosen}
    assert found["chosen"] == expected and 0 < len(expected) < len(found["all"])
    with pytest.raises(ValueError, match=r"metainfo.classes names \['unicorn'\], but the categor"):
        build(demo / "boxes_val.json", metainfo=dict(classes=["unicorn", names[0]]))


def test_the_last_parts_of_a_file_name(demo, tmp_path):
    coco = read_coco(demo / "boxes_train.json")
    coco["images"][0]["file_name"] = "images/v1/patch8/a.jpg"
    path = tmp_path / "boxes.json"
    path.write_text(json.dumps(coco))
    assert build(path).get_data_info(0)["img_path"] == "imgs/images/v1/patch8/a.jpg"
    assert build(path, path_parts=2).get_data_info(0)["img_path"] == "imgs/patch8/a.jpg"


def test_missing_file_and_wrong_structure(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no\.json does not exist"):
        build(tmp_path / "no.json")
    (tmp_path / "list.json").write_text("[1, 2]")
    with pytest.raises(ValueError, match=r"list\.json has no list 'images'"):
        build(tmp_path / "list.json")
