# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest
import torch
from mmdet.registry import DATASETS, TRANSFORMS
from mmengine.config import Config

from mal_mmdet.labeling import read_coco, write_json
from tests.conftest import ROOT

CONFIG = ROOT / "configs/mask_rcnn/mask-rcnn_demo-mal-quality-weighted.py"


def dataset_config(demo, tmp_path, edit):
    """The demo config's training data, with labels that were edited."""
    coco = read_coco(demo / "instances_train.json")
    edit(coco)
    write_json(tmp_path / "labels.json", coco)
    cfg = Config.fromfile(CONFIG).train_dataloader.dataset
    cfg.update(data_root=str(demo), ann_file=str(tmp_path / "labels.json"))
    return cfg


def test_qualities_reach_the_model_with_their_boxes(demo, tmp_path):
    """Also across an annotation that is skipped and a crowd, resized and flipped."""
    expected = {}

    def edit(coco):
        by_image = {}
        for ann in coco["annotations"]:
            by_image.setdefault(ann["image_id"], []).append(ann)
        anns = []
        for first, *others in by_image.values():
            x, y, w, h = first["bbox"]
            empty = first | dict(bbox=[x, y, 0, h])
            crowd = first | dict(bbox=[x + 1, y, w - 1, h], iscrowd=1)
            anns += [empty, first, crowd, *others]
        for i, ann in enumerate(anns):
            ann.update(id=i + 1, mask_quality=round(i / len(anns), 4))
        del anns[1]["mask_quality"]
        coco["annotations"] = anns
        for ann in anns:
            x, y, w, h = ann["bbox"]
            values = (ann["category_id"], ann.get("mask_quality", 1), ann["iscrowd"])
            if w:
                expected[ann["image_id"], x, y, x + w, y + h] = values
        assert len(expected) == len(anns) - len(by_image)

    cfg = dataset_config(demo, tmp_path, edit)
    dataset = DATASETS.build(cfg)
    np.random.seed(0)
    found, flips = {}, set()
    for sample in (dataset[i]["data_samples"] for i in range(len(dataset))):
        flips.add(sample.flip)
        kinds = (sample.gt_instances, sample.ignored_instances)
        for crowd, instances in enumerate(kinds):
            assert instances.mask_qualities.dtype == torch.float32
            assert instances.labels.dtype == torch.int64
            boxes = instances.bboxes.tensor.clone()
            if sample.flip:
                boxes[:, [2, 0]] = sample.img_shape[1] - boxes[:, [0, 2]]
            boxes /= boxes.new_tensor(sample.scale_factor).tile(2)
            ids = [dataset.cat_ids[label] for label in instances.labels]
            for box, *values in zip(boxes, ids, instances.mask_qualities.tolist()):
                key = (sample.img_id, *box.round().int().tolist())
                found[key] = (*values, crowd)
    assert flips == {True, False}
    assert found.keys() == expected.keys()
    for key, values in found.items():
        assert values == pytest.approx(expected[key], abs=1e-6)


def test_qualities_survive_transforms_that_drop_and_add_instances(demo, tmp_path):
    def edit(coco):
        ids = [category["id"] for category in coco["categories"]]
        for ann in coco["annotations"]:
            ann["mask_quality"] = (1 + ids.index(ann["category_id"])) / 10

    cfg = dataset_config(demo, tmp_path, edit)
    crop = dict(type="RandomCrop", crop_size=(100, 200))
    load, annotations, _, quality = cfg.pipeline[:4]  # the third resizes
    cfg.pipeline, end = [load, annotations, quality, crop], cfg.pipeline[-2:]
    mix = [dict(type="CopyPaste"), dict(type="FilterAnnotations", min_gt_bbox_wh=(8, 8)), *end]
    dataset = DATASETS.build(dict(type="MultiImageMixDataset", dataset=cfg, pipeline=mix))
    np.random.seed(0)
    changes = set()
    for i in range(len(dataset)):
        instances = dataset[i]["data_samples"].gt_instances
        before = len(dataset.dataset.get_data_info(i)["instances"])
        changes.add(np.sign(len(instances) - before))
        assert instances.labels.max() < len(dataset.dataset.metainfo["classes"])
        assert torch.allclose(instances.mask_qualities, (1 + instances.labels) / 10)
    assert changes >= {-1, 1}


def test_steps_that_are_missing_or_in_the_wrong_place(demo, tmp_path):
    def edit(coco):
        coco["annotations"][0]["mask_quality"] = 0.5

    cfg = dataset_config(demo, tmp_path, edit)
    pipeline = cfg.pipeline
    cfg.pipeline = [step for step in pipeline if step.type != "LoadMaskQuality"]
    with pytest.raises(ValueError, match=r"of \d+ instances of .*jpg have no mask quality: put"):
        DATASETS.build(cfg)[0]
    cfg.pipeline = [pipeline[0], pipeline[3], *pipeline[1:3], *pipeline[4:]]
    with pytest.raises(ValueError, match=r"no labels for \d+ annotations: .* right behind LoadAnn"):
        DATASETS.build(cfg)[0]


def test_a_limit_is_met_exactly():
    """As annotations round it, a quality of 0.7 is not below 0.7."""
    step = TRANSFORMS.build(dict(type="LoadMaskQuality"))
    unpack = TRANSFORMS.build(dict(type="UnpackMaskQuality"))
    pack = TRANSFORMS.build(dict(type="PackDetInputs"))
    values = [i / 10000 for i in range(10001)]
    instances = [dict(mask_quality=value) for value in values]
    labels = np.arange(len(values))
    results = step.transform(dict(instances=instances, gt_bboxes_labels=labels))
    packed = unpack.transform(pack.transform(results))["data_samples"].gt_instances
    assert torch.equal(packed.mask_qualities, torch.tensor(values))
    assert torch.equal(packed.labels, torch.from_numpy(labels))
