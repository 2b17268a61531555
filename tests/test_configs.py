# SPDX-License-Identifier: Apache-2.0
"""Every config builds and runs at its real size."""

from pathlib import Path

import mmpretrain
import numpy as np
import pytest
import torch
from mmdet.registry import DATASETS, MODELS
from mmdet.structures import DetDataSample
from mmengine.config import Config
from mmengine.hub import get_config
from mmengine.runner import Runner
from mmengine.structures import InstanceData

from mal_mmdet.datasets import boxes_to_coco, build_training_boxes
from mal_mmdet.labeling import read_coco, write_json
from tests.conftest import ROOT
from tests.tiny_sets import CONVERTED, TINY_SETS, config_path, set_data_root

MAL = sorted((ROOT / "configs/mal").glob("*.py"))
PHASE_2 = sorted(p for p in (ROOT / "configs").glob("*/*-mal.py") if "demo" not in p.stem)
MAIN = ROOT / "configs/mal/mal_vit-base-mae_8xb4-10e_coco.py"
# What makes a ConvNeXt-B of MMDetection's ConvNeXt-S.
CONVNEXT_B_WEIGHTS = (
    "https://mmassets.onedl.ai/mmclassification/v0/convnext/"
    "convnext-base_3rdparty_32xb128-noema_in1k_20220222-dba4f95f.pth"
)
CONVNEXT_B = {
    "checkpoint_file": CONVNEXT_B_WEIGHTS,
    "model.backbone.init_cfg.checkpoint": CONVNEXT_B_WEIGHTS,
    "model.backbone.arch": "base",
    "model.backbone.drop_path_rate": 0.7,
    "model.neck.in_channels": [128, 256, 512, 1024],
    "optim_wrapper.paramwise_cfg.decay_rate": 0.8,
}
OTHER_SETS = [config_path(name) for name in TINY_SETS]  # the main run on other data


def names(paths):
    return [path.stem for path in paths]


def distinct_architectures():
    """One config for each architecture; the large ones, a minute each, are marked slow."""
    seen = {}
    for path in [MAIN, *MAL]:
        network = Config.fromfile(path).model.network.to_dict()
        network.pop("init_cfg", None)
        seen.setdefault(repr(network), path)
    slow = ("vit-large", "vit-huge")
    marks = {p: [pytest.mark.slow] if any(s in p.stem for s in slow) else [] for p in MAL}
    return [pytest.param(path, id=path.stem, marks=marks[path]) for path in seen.values()]


@pytest.mark.parametrize("path", distinct_architectures())
def test_encoders_make_a_step_and_a_prediction_at_their_real_size(path):
    cfg = Config.fromfile(path)
    cfg.model.network.pop("init_cfg", None)
    cfg.model.crf_loss.num_steps = 10
    model = MODELS.build(cfg.model).train()
    size = cfg.train_dataloader.dataset.pipeline[1].size
    crop = torch.randint(0, 256, (3, size, size), dtype=torch.uint8)
    boxes, areas = torch.tensor([[0.2, 0.2, 0.8, 0.8]]) * size, torch.tensor([5000.0])
    sample = DetDataSample(gt_instances=InstanceData(bboxes=boxes, areas=areas))
    data = dict(inputs=dict(student=[crop], teacher=[crop]), data_samples=dict(student=[sample]))
    data = model.data_preprocessor(data, training=True)
    # The main run trains in mixed precision; one encoder is enough to show it.
    with torch.autocast("cpu", torch.bfloat16, enabled=path.stem == MAIN.stem):
        losses = model(**data, mode="loss")
    sum(losses.values()).backward()
    assert losses["loss_mil"] > 0 and losses["loss_crf"] > 0
    # Distributed training fails where a weight takes no part in the loss.
    gradients = {k: p.grad for k, p in model.student.named_parameters() if p.requires_grad}
    assert [name for name, gradient in gradients.items() if gradient is None] == []
    assert all(gradient.isfinite().all() for gradient in gradients.values())
    with torch.no_grad():
        logits = model.eval().mask_logits(data["inputs"]["student"], areas)
    coarse = path.stem.endswith("_demo") or path.stem.startswith("demo-encoder")
    cells = 32 if coarse else 64 if size <= 128 else 128
    assert logits.shape == (1, cells, cells)


@pytest.mark.parametrize("path", MAL, ids=names(MAL))
def test_pretrained_weights_are_named(path):
    init_cfg = Config.fromfile(path).model.network.get("init_cfg")
    if "demo" in path.stem:
        assert init_cfg is None
    else:
        assert init_cfg.type == "PretrainedEncoder"
        known = mmpretrain_offers(init_cfg.checkpoint)
        assert known or init_cfg.checkpoint.startswith("hf-hub:timm/")


def mmpretrain_offers(checkpoint):
    index = Path(mmpretrain.__file__).parent.glob(".mim/configs/*/metafile.yml")
    return any(checkpoint in file.read_text() for file in index)


def test_weights_of_convnext_b_exist():
    assert mmpretrain_offers(CONVNEXT_B_WEIGHTS)


@pytest.mark.parametrize("path", OTHER_SETS, ids=names(OTHER_SETS))
def test_other_data_sets_change_nothing_but_the_data(path):
    main, other = Config.fromfile(MAIN).to_dict(), Config.fromfile(path).to_dict()
    for cfg in (main, other):
        for loader in ("train_dataloader", "test_dataloader"):
            del cfg[loader]["dataset"]["dataset"]
        del cfg["data_root"], cfg["test_evaluator"], cfg["detection_metric"]
    assert main == other


def crop_of(sample):
    inputs = sample["inputs"]
    return inputs["student"] if isinstance(inputs, dict) else inputs.flatten(0, -4)[0]


def assert_boxes_alone(sample):
    packed = sample["data_samples"]
    packed = packed["student"] if isinstance(packed, dict) else packed
    always = {"bboxes", "ori_bboxes", "crop_bboxes", "areas", "labels"}
    assert packed.keys() == ["gt_instances"]
    found = set(packed.gt_instances.keys())
    assert always <= found <= always | {"view_bboxes", "ann_ids", "ann_indices"}


@pytest.mark.parametrize(
    "path",
    [path for path in MAL if path not in OTHER_SETS],
    ids=names(path for path in MAL if path not in OTHER_SETS),
)
def test_phase_1_reads_boxes_only(path, demo):
    cfg = Config.fromfile(path)
    for loader in (cfg.train_dataloader, cfg.test_dataloader):
        dataset = loader.dataset
        source = dataset.dataset
        while "dataset" in source:
            source = source.dataset
        assert source.type == "CocoBoxDataset"
        assert "boxes" in source.ann_file
        source.update(
            data_root=str(demo), ann_file="boxes_train.json", data_prefix=dict(img="train")
        )
        size = dataset.pipeline[1].size
        sample = DATASETS.build(dataset)[0]
        assert crop_of(sample).shape == (3, size, size)
        assert_boxes_alone(sample)


@pytest.mark.parametrize("name", TINY_SETS)
def test_phase_1_reads_boxes_only_of_other_data_sets(name, tmp_path):
    """From the folders that mmdet documents; tests/datasets/test_formats.py reads every box."""
    TINY_SETS[name](tmp_path)
    cfg = Config.fromfile(config_path(name))
    set_data_root([cfg.train_dataloader, cfg.test_dataloader], tmp_path)
    source = cfg.test_dataloader.dataset.dataset
    assert source.type == "CocoBoxDataset"
    if name in CONVERTED:
        boxes = boxes_to_coco(build_training_boxes(cfg), tmp_path / CONVERTED[name])
        write_json(tmp_path / source.ann_file, boxes)
    for loader in (cfg.train_dataloader, cfg.test_dataloader):
        assert loader.dataset.type == "BoxCropDataset"
        size = loader.dataset.pipeline[1].size
        dataset = DATASETS.build(loader.dataset)
        assert_boxes_alone(dataset[0])
        assert size == 512 and crop_of(dataset[0]).shape == (3, size, size)


def test_demo_boxinst_is_the_stock_one_but_for_size_and_length():
    """What it learns masks with is MMDetection's; so is CondInst's."""
    for name, stock_name in (
        ("boxinst/boxinst_demo", "boxinst/boxinst_r50_fpn_ms-90k_coco"),
        ("condinst/condinst_demo-mal", "condinst/condinst_r50_fpn_ms-poly-90k_coco_instance"),
    ):
        ours = without_scopes(Config.fromfile(ROOT / f"configs/{name}.py").model.to_dict())
        stock = without_scopes(get_config(f"mmdet::{stock_name}.py").model.to_dict())
        assert ours["type"] == stock["type"]
        assert ours["data_preprocessor"] == stock["data_preprocessor"]
        for head in (ours["mask_head"], stock["mask_head"]):
            for size in ("in_channels", "feat_channels", "num_stacked_convs"):
                head["mask_feature_head"].pop(size)
            head.pop("warmup_iters", None)
            head["loss_mask"].pop("loss_weight", None)  # 1 in both
        assert ours["mask_head"] == stock["mask_head"]
        assert ours["bbox_head"]["num_params"] == stock["bbox_head"]["num_params"]


def test_the_main_run_is_the_papers():
    cfg = Config.fromfile(MAIN)
    assert cfg.optim_wrapper.type == "AmpOptimWrapper"
    assert cfg.optim_wrapper.optimizer.pop("fused")  # how it computes, not what
    assert cfg.optim_wrapper.optimizer == dict(
        type="AdamW", lr=1.5e-6 * 32, betas=(0.9, 0.9), eps=1e-8, weight_decay=5e-4
    )
    assert cfg.train_cfg.max_epochs == 10 and cfg.train_dataloader.batch_size == 4
    assert cfg.model.network.init_cfg.checkpoint.startswith("https://")
    model = MODELS.build(cfg.model)
    assert (model.mil_loss.loss_weight, model.mil_loss.warmup_iters) == (4.0, 1000)
    assert (model.crf_loss.loss_weight, model.crf_loss.warmup_iters) == (0.5, 4000)
    assert model.crf_loss.mean_field_cfg == dict(zeta=0.1, omega=1, kernel_size=3, num_steps=100)


@pytest.mark.parametrize("path", PHASE_2, ids=names(PHASE_2))
def test_phase_2_differs_from_stock_by_its_label_file_alone(path):
    stock_name = f"{path.parent.name}/{path.name.replace('-mal.py', '.py')}"
    stock = get_config(f"mmdet::{stock_name.replace('convnext-b', 'convnext-s')}")
    if "convnext-b" in stock_name:
        stock.merge_from_dict(CONVNEXT_B)
    ours = Config.fromfile(path)
    ours, stock = (without_scopes(cfg.to_dict()) for cfg in (ours, stock))
    human = "lvis_v1_train" if path.parent.name == "lvis" else "instances_train2017"
    polygon = "-polygon" if "'poly2mask': False" in str(stock) else ""
    assert pop_train_file(ours) == f"annotations/{human}_mal{polygon}.json"
    assert pop_train_file(stock) == f"annotations/{human}.json"
    assert ours == stock


def pop_train_file(cfg):
    dataset = cfg["train_dataloader"]["dataset"]
    while "dataset" in dataset:
        dataset = dataset["dataset"]
    return dataset.pop("ann_file")


def without_scopes(node):
    """A config without the ``_scope_`` marks that a base from another package leaves."""
    if isinstance(node, dict):
        return {k: without_scopes(v) for k, v in node.items() if k != "_scope_"}
    if isinstance(node, (list, tuple)):
        return [without_scopes(v) for v in node]
    return node


@pytest.mark.parametrize("name", ["demo", "r50_fpn_1x_coco"])
@pytest.mark.parametrize("use", ["quality-weighted", "min-quality"])
def test_use_of_quality_adds_no_weights_and_keeps_the_rest(name, use):
    folder = ROOT / "configs/mask_rcnn"
    plain = Config.fromfile(folder / f"mask-rcnn_{name}-mal.py").to_dict()
    ours = Config.fromfile(folder / f"mask-rcnn_{name}-mal-{use}.py").to_dict()
    assert ours.pop("custom_imports")["imports"] == ["mal_mmdet"]
    head = ours["model"]["roi_head"]["mask_head"]
    assert head["type"] == "QualityMaskHead"
    assert (use == "min-quality") == (0 < head.pop("min_quality", 0) < 1)
    assert head.pop("weighted", True) == (use == "quality-weighted")
    head["type"] = "FCNMaskHead"
    dataset = ours["train_dataloader"]["dataset"]
    assert dataset["type"] == "MaskQualityDataset"
    dataset["type"] = "CocoDataset"
    for pipeline in (dataset["pipeline"], ours["train_pipeline"]):
        steps = [step["type"] for step in pipeline]
        between = steps[steps.index("LoadAnnotations") + 1 : steps.index("LoadMaskQuality")]
        assert between == ["Resize"]  # which drops no box
        assert steps[-2:] == ["PackDetInputs", "UnpackMaskQuality"]
        pipeline[:] = [step for step in pipeline if "MaskQuality" not in step["type"]]
    assert without_scopes(ours) == without_scopes(plain)


@pytest.mark.parametrize(
    "use, quality, learned",
    [("quality-weighted", 0.5, True), ("min-quality", 0.8, True), ("min-quality", 0.5, False)],
)
def test_detectors_train_with_the_quality_of_masks(use, quality, learned, demo, tmp_path):
    labels = read_coco(demo / "instances_train.json")
    for ann in labels["annotations"]:
        ann["mask_quality"] = quality
    write_json(tmp_path / "labels.json", labels)
    cfg = Config.fromfile(ROOT / f"configs/mask_rcnn/mask-rcnn_demo-mal-{use}.py")
    cfg.train_dataloader.dataset.data_root = str(demo)
    cfg.train_dataloader.dataset.ann_file = str(tmp_path / "labels.json")
    cfg.val_dataloader = cfg.val_evaluator = cfg.val_cfg = None
    cfg.test_dataloader = cfg.test_evaluator = cfg.test_cfg = None
    cfg.update(work_dir=str(tmp_path), log_level="WARNING", randomness=dict(seed=0))
    cfg.train_cfg.max_epochs = 1
    runner = Runner.from_cfg(cfg)
    runner.train()
    losses = {
        name: runner.message_hub.get_scalar(f"train/{name}").data[0]
        for name in ("loss_mask", "loss_bbox")
    }
    assert all(np.isfinite(values).all() for values in losses.values())
    assert len(losses["loss_mask"]) == 2 and (losses["loss_bbox"] > 0).all()
    assert ((losses["loss_mask"] > 0) == learned).all()
