# SPDX-License-Identifier: Apache-2.0
"""Options of training that come from MMEngine and mmpretrain, by config alone."""

import pytest
import torch
from mmdet.registry import MODELS
from mmengine.runner import Runner
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.distributed.fsdp._common_utils import FSDP_PREFIX

from tests.conftest import tiny_config

ARCH = dict(embed_dims=32, num_layers=3, num_heads=2, feedforward_channels=32)


def config(demo, tmp_path, **options):
    arch = {"model.network.backbone.arch": ARCH, "train_cfg.max_epochs": 1}
    return tiny_config(demo, tmp_path, **arch, **options)


def trained(cfg):
    runner = Runner.from_cfg(cfg)
    runner.model.init_weights()
    before = {k: v.clone() for k, v in runner.model.state_dict().items()}
    runner.train()
    return before, runner.model.state_dict()


def test_frozen_stages_stay_in_student_and_teacher(demo, tmp_path):
    cfg = config(demo, tmp_path, **{"model.network.backbone.frozen_stages": 2})
    before, after = trained(cfg)
    frozen = ("patch_embed", "pos_embed", "cls_token", "layers.0.", "layers.1.")
    for key, value in before.items():
        kept = any(f".backbone.{name}" in key for name in frozen)
        if key.startswith("student."):
            assert torch.equal(value, after[key]) == kept, key
        elif kept:  # a moving average of equal weights rounds
            torch.testing.assert_close(value, after[key], msg=key)


def test_layer_wise_decay_of_the_learning_rate(demo, tmp_path):
    options = {
        "optim_wrapper.constructor": "mmpretrain.LearningRateDecayOptimWrapperConstructor",
        "optim_wrapper.paramwise_cfg": dict(layer_decay_rate=0.5),
    }
    runner = Runner.from_cfg(config(demo, tmp_path, **options))
    optim = runner.build_optim_wrapper(runner.cfg.optim_wrapper)
    groups = optim.optimizer.param_groups
    rates = {group["param_name"]: group["lr"] for group in groups}
    base = runner.cfg.optim_wrapper.optimizer.lr
    assert rates.keys() == {k for k, p in runner.model.named_parameters() if p.requires_grad}
    for name, halvings in {
        "student.decoder.pixel_head.0.conv.weight": 0,
        "student.backbone.ln1.weight": 0,
        "student.backbone.layers.2.attn.qkv.weight": 1,
        "student.backbone.layers.0.attn.qkv.weight": 3,
        "student.backbone.patch_embed.projection.weight": 4,
        "student.backbone.pos_embed": 4,
    }.items():
        assert rates[name] == pytest.approx(base * 0.5**halvings), name


def test_layer_wise_decay_refuses_encoders_without_depths(demo, tmp_path):
    model = MODELS.build(config(demo, tmp_path).model)
    model.student.backbone = torch.nn.Conv2d(3, 3, 1)
    with pytest.raises(ValueError, match=r"needs a VisionTransformer.*backbone is a Conv2d"):
        model.get_layer_depth("student.backbone.weight")


def test_layer_wise_decay_looks_through_wrappers(demo, tmp_path):
    model = MODELS.build(config(demo, tmp_path).model)
    layers = model.student.backbone.layers
    for i, layer in enumerate(layers):
        layers[i] = checkpoint_wrapper(layer)
    names = [name for name, _ in layers.named_parameters()]
    assert names[0].startswith("0._checkpoint_wrapped_module.")
    for name in names:
        depth = model.get_layer_depth(f"student.{FSDP_PREFIX}backbone.layers.{name}")
        assert depth == (1 + int(name[0]), 5)


@pytest.mark.parametrize("frozen, layers", [(-1, [0, 1, 2]), (1, [2])])
def test_gradient_checkpointing_changes_nothing_but_memory(
    frozen, layers, demo, tmp_path, monkeypatch
):
    """Of an encoder whose start is frozen, from the second trained layer on."""
    options = {"model.network.backbone.frozen_stages": frozen}
    _, plain = trained(config(demo, tmp_path / "plain", **options))
    used = []

    def checkpoint(forward, *args):
        used.append(forward)
        return torch.utils.checkpoint.checkpoint(forward, *args)

    monkeypatch.setattr("mmengine.runner.activation_checkpointing.checkpoint", checkpoint)
    cfg = config(demo, tmp_path / "checkpointed", **options)
    cfg.activation_checkpointing = [f"student.backbone.layers.{i}" for i in layers]
    _, saving = trained(cfg)
    assert used and len(used) % len(layers) == 0
    for key, value in plain.items():
        torch.testing.assert_close(value, saving[key], msg=key)


def test_drop_path_is_the_students_alone(demo, tmp_path):
    cfg = config(demo, tmp_path, **{"model.network.backbone.drop_path_rate": 0.5})
    model = MODELS.build(cfg.model)
    model.init_weights()
    model.train()
    crops, areas = torch.randn(4, 3, 32, 32), torch.full((4,), 500.0)
    assert not torch.equal(model.student(crops, areas), model.student(crops, areas))
    assert torch.equal(model.teacher(crops, areas), model.teacher(crops, areas))


def test_validation_against_human_masks_during_training(demo, tmp_path):
    cfg = config(demo, tmp_path)
    cfg.val_dataloader, cfg.val_cfg = cfg.test_dataloader, dict(type="ValLoop")
    cfg.val_evaluator = [
        dict(cfg.test_evaluator, boundary=True),
        dict(type="ClusteringScoreMetric", ann_file=cfg.test_evaluator.ann_file),
    ]
    cfg.model.return_features = True
    cfg.default_hooks.checkpoint.save_best = "mask/miou"
    runner = Runner.from_cfg(cfg)
    runner.train()
    found = runner.message_hub.log_scalars
    assert 0 < found["val/mask/miou"].current() < 1
    assert 0 < found["val/mask/boundary_miou"].current() < 1
    assert 0 < found["val/clustering/score"].current() < 4
    assert list(tmp_path.glob("best_mask_miou_*.pth"))
