# SPDX-License-Identifier: Apache-2.0
"""Every config of phase 2 reads all labels and learns masks from them.

The demo data stands in for COCO and LVIS: it lies in their folders under their names, in their
categories, so that a config changes by nothing but its ``data_root``.
"""

from pathlib import Path

import pytest
import torch
from mmdet.registry import DATASETS, MODELS
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.logging import MessageHub
from mmengine.optim import build_optim_wrapper
from mmengine.runner import set_random_seed

from mal_mmdet.apis import generate_labels
from mal_mmdet.apis.label_swap import innermost_dataset
from mal_mmdet.labeling import (
    mask_to_polygons,
    read_coco,
    segmentation_to_mask,
    strip_masks,
    write_json,
)
from tests.conftest import ROOT, tiny_config
from tests.tiny_sets import set_data_root

PHASE_2 = sorted((ROOT / "configs").glob("*/*-mal.py"))
# With the quality of masks, and BoxInst, which has none to learn from.
OTHERS = sorted((ROOT / "configs").glob("*/*-mal-*.py"))
OTHERS.append(ROOT / "configs/boxinst/boxinst_demo.py")
# What is left of a pipeline whose count of objects does not depend on chance.
COUNTED = ("LoadImageFromFile", "LoadAnnotations", "FilterAnnotations", "PackDetInputs")
# A training step on images of 96 pixels, whole and always of the same scale, …
SIZE = (96, 96)
SMALL_IMAGES = dict(scale=SIZE, scales=[SIZE], img_scale=SIZE, crop_size=SIZE, size=SIZE)
SMALL_IMAGES["ratio_range"] = (1.0, 1.0)
# … with fewer proposals, and in SOLOv2 fewer cells.
FEW_BOXES = dict(num=16, max_per_img=50, num_proposals=20, num_grids=[8, 6, 4, 3, 2])
MASK_LOSSES = ("loss_mask", "loss_dice", "loss_point", "loss_mask_project")


@pytest.fixture(scope="module")
def data(demo, tmp_path_factory) -> Path:
    """The demo data as itself, as COCO and as LVIS v1; labeled by an untrained MAL."""
    root = tmp_path_factory.mktemp("data")
    annotations = root / "annotations"
    annotations.mkdir()
    for folder in ("train", "train2017"):
        (root / folder).symlink_to(demo / "train")
    human = read_coco(demo / "instances_train.json")
    write_json(root / "instances_train.json", human)
    write_json(root / "boxes_train.json", strip_masks(human))

    for ann in human["annotations"]:  # people draw polygons in COCO and LVIS
        rle = ann["segmentation"]
        ann["segmentation"] = mask_to_polygons(segmentation_to_mask(rle, *rle["size"]))
    human["categories"] = categories("CocoDataset")
    write_json(annotations / "instances_train2017.json", human)

    for image in human["images"]:
        name = image.pop("file_name")
        image["coco_url"] = f"http://images.cocodataset.org/train2017/{name}"
        image |= dict(neg_category_ids=[], not_exhaustive_category_ids=[])
    for ann in human["annotations"]:
        del ann["iscrowd"]
    human["categories"] = categories("LVISV1Dataset")
    write_json(annotations / "lvis_v1_train.json", human)

    cfg = tiny_config(demo, root / "work", **{"model.thresholds": 0.5})
    torch.manual_seed(0)
    model = MODELS.build(cfg.model)
    model.init_weights()
    torch.save(dict(state_dict=model.state_dict(), meta={}), root / "mal.pth")
    for human_file, img_dir, mask_format in (
        (root / "instances_train.json", demo / "train", "rle"),
        (annotations / "instances_train2017.json", demo / "train", "rle"),
        (annotations / "instances_train2017.json", demo / "train", "polygon"),
        (annotations / "lvis_v1_train.json", root, "rle"),
    ):
        boxes = root / "boxes.json"
        write_json(boxes, strip_masks(read_coco(human_file)))
        suffix = "_mal-polygon" if mask_format == "polygon" else "_mal"
        out = human_file.with_stem(human_file.stem + suffix)
        options = dict(mask_format=mask_format)
        assert generate_labels(cfg, root / "mal.pth", boxes, img_dir, out, **options) == 0
    return root


def categories(dataset):
    names = DATASETS.get(dataset).METAINFO["classes"]
    return [dict(id=i + 1, name=name, frequency="f") for i, name in enumerate(names)]


def load(path, data) -> Config:
    cfg = Config.fromfile(path)
    set_data_root(cfg.train_dataloader, data)
    return cfg


def pipelines(cfg):
    """That of the data set, and those that hooks put in its place in mid-training."""
    hooks = cfg.get("custom_hooks") or []
    others = [hook.switch_pipeline for hook in hooks if "switch_pipeline" in hook]
    return [innermost_dataset(cfg.train_dataloader.dataset).pipeline, *others]


def objects(cfg, pipeline, ann_file=None):
    """Image → classes of the objects that a detector learns there, less all that is random."""
    cfg = cfg.copy()
    dataset = innermost_dataset(cfg.train_dataloader.dataset)
    dataset.pipeline = [step for step in pipeline if step.type in COUNTED]
    dataset.ann_file = ann_file or dataset.ann_file
    dataset = DATASETS.build(cfg.train_dataloader.dataset)
    found = {}
    for i in range(len(dataset)):
        sample = dataset[i]["data_samples"]
        assert (sample.gt_instances.masks.areas > 0).all()
        found[Path(sample.img_path).name] = sample.gt_instances.labels.tolist()
    assert len(found) == len(dataset)
    return found


@pytest.mark.parametrize("path", PHASE_2, ids=lambda path: path.stem)
def test_labels_are_read_like_human_masks(path, data, demo):
    expected = {}
    coco = read_coco(demo / "instances_train.json")
    names = {image["id"]: image["file_name"] for image in coco["images"]}
    for ann in coco["annotations"]:
        expected.setdefault(names[ann["image_id"]], []).append(ann["category_id"] - 1)
    assert len(expected) == 8

    cfg = load(path, data)
    labels = innermost_dataset(cfg.train_dataloader.dataset).ann_file
    human = labels.replace("_mal-polygon", "").replace("_mal", "")
    assert human != labels
    for pipeline in pipelines(cfg):
        assert objects(cfg, pipeline) == expected
        assert objects(cfg, pipeline, human) == expected


def dicts(node):
    """All dicts of a config, each before those in it."""
    if isinstance(node, dict):
        yield node
        node = list(node.values())
    if isinstance(node, (list, tuple)):
        for value in node:
            yield from dicts(value)


def override(node, values):
    """Sets these keys wherever a config has them."""
    for part in dicts(node):
        part.update({key: value for key, value in values.items() if key in part})


def learn(cfg):
    """One step on small images; checks that the masks are learned, and all weights with them."""
    set_random_seed(0)
    override([pipelines(cfg), cfg.model.data_preprocessor], SMALL_IMAGES)
    override(cfg.model, FEW_BOXES)
    for part in dicts(cfg.model):
        if (part.get("init_cfg") or {}).get("type") == "Pretrained":
            del part["init_cfg"]
    cfg.optim_wrapper.type = "OptimWrapper"  # mixed precision is for GPUs
    cfg.optim_wrapper.pop("loss_scale", None)

    dataset = DATASETS.build(cfg.train_dataloader.dataset)
    # All are read, since RTMDet's mosaic is made of images that were read before.
    samples = [dataset[i] for i in range(len(dataset))]
    batch = pseudo_collate(samples[-1:])
    model = MODELS.build(cfg.model)
    model.init_weights()
    optimizer = build_optim_wrapper(model.train(), cfg.optim_wrapper)
    MessageHub.get_current_instance().update_info("iter", 1)  # a runner's, for BoxInst's warm-up
    losses = model(**model.data_preprocessor(batch, training=True), mode="loss")
    loss, terms = model.parse_losses(losses)
    optimizer.backward(loss)

    assert all(term.isfinite() for term in terms.values())
    # They are 0 where no object is left to learn.
    mask_losses = [v for k, v in terms.items() if k.split(".")[-1] in MASK_LOSSES]
    assert mask_losses and all(term > 0 for term in mask_losses)
    # Distributed training fails where a weight takes no part in the loss.
    gradients = {k: p.grad for k, p in model.named_parameters() if p.requires_grad}
    assert [name for name, gradient in gradients.items() if gradient is None] == []
    assert all(gradient.isfinite().all() for gradient in gradients.values())


@pytest.mark.parametrize("path", [*PHASE_2, *OTHERS], ids=lambda path: path.stem)
def test_masks_are_learned(path, data):
    cfg = load(path, data)
    override(cfg.model, dict(min_quality=0.1))  # an untrained network's masks are all poor
    learn(cfg)
