# SPDX-License-Identifier: Apache-2.0
import pytest
from mmdet.registry import DATASETS

from mal_mmdet.labeling import read_coco, write_json


@pytest.fixture
def built(demo, tmp_path):
    """Builds a data set of the demo's labels after an edit of their first annotations."""

    def build(kind, edit):
        coco = read_coco(demo / "instances_train.json")
        edit(coco["annotations"])
        write_json(tmp_path / "labels.json", coco)
        classes = tuple(category["name"] for category in coco["categories"])
        cfg = dict(
            type=kind, ann_file=str(tmp_path / "labels.json"), metainfo=dict(classes=classes)
        )
        return DATASETS.build(dict(cfg, data_prefix=dict(img=str(demo / "train"))))

    return build


def test_it_is_a_coco_dataset_that_also_has_qualities(built):
    expected = {}

    def edit(anns):
        for i, ann in enumerate(anns):
            ann["mask_quality"] = i / len(anns)
        anns[0]["bbox"][2] = 0  # the parent skips this one and the next but one
        anns[2]["ignore"] = 1
        anns[3]["iscrowd"] = 1
        del anns[4]["mask_quality"]
        anns[5]["mask_quality"] = 1  # an integer
        expected.update((ann["segmentation"]["counts"], ann.get("mask_quality")) for ann in anns)
        assert len(expected) == len(anns)

    ours, stock = built("MaskQualityDataset", edit), built("CocoDataset", edit)
    assert len(ours) == len(stock) == 8
    found = {}
    for i in range(len(stock)):
        info = ours.get_data_info(i)
        for instance in info["instances"]:
            found[instance["mask"]["counts"]] = instance.pop("mask_quality", None)
        assert info == stock.get_data_info(i)
    assert len(found) == len(expected) - 2
    assert found == {counts: expected[counts] for counts in found}


@pytest.mark.parametrize("value", [float("nan"), -0.1, 1.01, "0.5", None, True])
def test_bad_qualities_are_named(built, value):
    def edit(anns):
        anns[3]["mask_quality"] = value
        anns[3]["id"] = 4711

    with pytest.raises(ValueError, match=f"annotation 4711 is {value!r}; expected a number from 0"):
        built("MaskQualityDataset", edit)


def test_labels_without_any_quality_are_refused(built):
    def edit(anns):
        anns[0]["bbox"][2] = 0
        anns[0]["mask_quality"] = 0.5  # nobody learns from this one

    with pytest.raises(ValueError, match=r"labels.json has mask_quality.*tools/generate_labels.py"):
        built("MaskQualityDataset", edit)
