# SPDX-License-Identifier: Apache-2.0
"""Two processes learn what one learns from all their crops, sharded or not."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.runner import Runner

from mal_mmdet.apis import generate_labels
from mal_mmdet.labeling import read_coco
from tests.conftest import ROOT, free_port, tiny_config
from tests.forked import ranks

FSDP = ROOT / "configs/mal/mal_vit-huge-p14-mae_8xb4-10e_coco-fsdp.py"
ARCH = dict(embed_dims=32, num_layers=2, num_heads=2, feedforward_channels=32)


def config(demo, work_dir, batch_size, max_iters=2):
    """Saves every step, with its gradients: SGD's momentum after the first step is the gradient."""
    cfg = tiny_config(
        demo,
        work_dir,
        **{
            "model.network.backbone.arch": ARCH,
            "model.mil_loss.warmup_iters": 0,
            "model.crf_loss.warmup_iters": 0,
            "train_dataloader.batch_size": batch_size,
            "default_hooks.checkpoint.by_epoch": False,
            "custom_hooks.0.interval": 1,  # pictures
        },
    )
    cfg.train_cfg = dict(type="IterBasedTrainLoop", max_iters=max_iters)
    cfg.param_scheduler = []
    cfg.optim_wrapper.optimizer = dict(type="SGD", lr=0.05, momentum=0.9)
    return cfg


def load(work_dir, step):
    return torch.load(work_dir / f"iter_{step}.pth", weights_only=False)


@pytest.fixture(scope="module")
def whole(demo, tmp_path_factory):
    """One process with batches of 8: the checkpoints of both steps."""
    work_dir = tmp_path_factory.mktemp("whole")
    Runner.from_cfg(config(demo, work_dir, 8)).train()
    return [load(work_dir, step) for step in (1, 2)]


def assert_same_training(found, expected):
    """Equal weights of student and teacher, and momenta, but for rounding.

    With FSDP a checkpoint names the parameter of a momentum, without it counts.
    """
    names = [key for key in expected["state_dict"] if key.startswith("student.")]
    assert list(found["state_dict"]) == list(expected["state_dict"])
    for key, value in expected["state_dict"].items():
        torch.testing.assert_close(found["state_dict"][key], value, rtol=1e-5, atol=1e-6, msg=key)
    found, expected = (checkpoint["optimizer"]["state"] for checkpoint in (found, expected))
    assert len(found) == len(expected) == len(names)
    for i, name in enumerate(names):
        momentum = expected[i]["momentum_buffer"]
        difference = found[name if name in found else i]["momentum_buffer"] - momentum
        assert momentum.norm() > 0 and difference.norm() < 1e-5 * momentum.norm(), name


def test_two_processes_equal_one_with_the_double_batch(demo, tmp_path, whole):
    config(demo, tmp_path, 4).dump(tmp_path / "tiny.py")
    env = os.environ | dict(
        CUDA_VISIBLE_DEVICES="",
        OMP_NUM_THREADS="1",
        PORT=free_port(),
        PATH=f"{Path(sys.executable).parent}:{os.defpath}",
    )
    command = ["bash", ROOT / "tools/dist_train.sh", tmp_path / "tiny.py", "2"]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    for step, expected in enumerate(whole, 1):
        assert_same_training(load(tmp_path, step), expected)


def test_both_views_with_checkpointing_on_two_processes(demo, tmp_path):
    """DDP takes the gradient of a layer once, and checkpointing gives one for each of its calls."""
    options = {"model.mirror_student": True, "model.mirror_teacher": True}
    alone = config(demo, tmp_path / "alone", 8, max_iters=1)
    alone.merge_from_dict(options)
    Runner.from_cfg(alone).train()
    cfg = config(demo, tmp_path, 4, max_iters=1)
    cfg.merge_from_dict(options)
    cfg.activation_checkpointing = ["student.backbone.layers.0", "student.backbone.layers.1"]
    codes, outputs = ranks(cfg, tmp_path)
    assert codes == [0, 0], outputs
    assert_same_training(load(tmp_path, 1), load(tmp_path / "alone", 1))


def test_sharded_training_equals_that_of_one_process(demo, tmp_path, whole):
    """Interrupted after the first step and resumed; its checkpoint labels without FSDP."""
    cfg = config(demo, tmp_path, 4, max_iters=1)
    sharded = Config.fromfile(FSDP)
    cfg.runner_type, cfg.strategy = sharded.runner_type, sharded.strategy
    codes, outputs = ranks(cfg, tmp_path)
    assert codes == [0, 0], outputs
    assert_same_training(load(tmp_path, 1), whole[0])
    cfg.train_cfg.max_iters = 2
    codes, outputs = ranks(cfg, tmp_path)
    assert codes == [0, 0], outputs
    assert_same_training(load(tmp_path, 2), whole[1])

    boxes, out = demo / "boxes_val.json", tmp_path / "labels.json"
    assert generate_labels(cfg, tmp_path / "iter_2.pth", boxes, demo / "val", out) == 0
    assert all("segmentation" in ann for ann in read_coco(out)["annotations"])
