# SPDX-License-Identifier: Apache-2.0
"""Phase 1 through MMEngine's runner: learning, resuming, and blindness to masks."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from mmengine.hooks import Hook
from mmengine.runner import Runner

from mal_mmdet.engine import MultiTensorMeanTeacherHook
from mal_mmdet.labeling import read_coco, write_json
from tests.conftest import ROOT, free_port, tiny_config


def train(cfg):
    runner = Runner.from_cfg(cfg)
    runner.train()
    return runner


def load(path):
    return torch.load(path, weights_only=False)


def assert_same(a, b, path=""):
    """Same nested structure, equal tensors."""
    if isinstance(a, torch.Tensor):
        assert torch.equal(a, b), path
    elif isinstance(a, dict):
        assert list(a) == list(b), path
        for key in a:
            assert_same(a[key], b[key], f"{path}.{key}")
    elif isinstance(a, (list, tuple)):
        assert len(a) == len(b), path
        for i, (x, y) in enumerate(zip(a, b)):
            assert_same(x, y, f"{path}[{i}]")
    else:
        assert a == b, path


def test_a_few_steps_lower_the_loss_and_move_the_teacher_slowly(demo, tmp_path):
    """On one batch that stays the same, with both losses at full weight."""
    cfg = tiny_config(
        demo,
        tmp_path,
        **{
            "model.mil_loss.warmup_iters": 0,
            "model.crf_loss.warmup_iters": 0,
            "param_scheduler": [],
            "train_cfg.max_epochs": 1,
        },
    )
    runner = Runner.from_cfg(cfg)
    model, dataset = runner.model, runner.build_dataloader(cfg.train_dataloader).dataset
    model.init_weights()
    samples = [dataset[(i, 0)] for i in range(8)]
    batch = dict(
        inputs={v: [s["inputs"][v] for s in samples] for v in ("student", "teacher")},
        data_samples={"student": [s["data_samples"]["student"] for s in samples]},
    )
    optim = runner.build_optim_wrapper(cfg.optim_wrapper)
    losses = [float(model.train_step(batch, optim)["loss"]) for _ in range(40)]
    assert losses[-1] < 0.6 * losses[0]


@pytest.mark.parametrize("color_weight", [0.0, 2.0])
def test_a_step_that_mmengine_compiles(demo, tmp_path, color_weight):
    """By a backend that runs the captured graphs as they are: what is tested is the capture."""
    weights = []
    for compiled in (False, True):
        options = {"train_cfg.max_epochs": 1, "compile": compiled and dict(backend="eager")}
        options["model.crf_loss.color_weight"] = color_weight
        cfg = tiny_config(demo, tmp_path / str(compiled), randomness=dict(seed=0), **options)
        weights.append(train(cfg).model.state_dict())
    torch._dynamo.reset()
    for key, value in weights[0].items():
        torch.testing.assert_close(weights[1][key], value, msg=key)


def test_teacher_is_the_moving_average_of_the_student(demo, tmp_path):
    cfg = tiny_config(demo, tmp_path, **{"train_cfg.max_epochs": 1})
    runner = Runner.from_cfg(cfg)
    name = "decoder.instance_head.0.weight"
    expected = []

    def follow(runner, batch_idx, data_batch=None, outputs=None):
        student = runner.model.student.get_parameter(name).detach().clone()
        previous = expected[-1] if expected else initial
        expected.append(0.996 * previous + 0.004 * student)

    hook = next(h for h in runner.hooks if type(h).__name__ == "MultiTensorMeanTeacherHook")
    original = hook.before_train

    def before_train(runner):
        original(runner)
        nonlocal initial
        initial = runner.model.student.get_parameter(name).detach().clone()

    initial = None
    hook.before_train = before_train
    after = hook.after_train_iter

    def after_train_iter(*args, **kwargs):
        follow(*args, **kwargs)
        after(*args, **kwargs)

    hook.after_train_iter = after_train_iter
    runner.train()
    teacher = runner.model.teacher.get_parameter(name)
    torch.testing.assert_close(teacher, expected[-1])
    assert not torch.equal(teacher, initial)
    assert not torch.allclose(teacher, runner.model.student.get_parameter(name))


def test_the_teacher_follows_steps_of_the_optimizer(demo, tmp_path, monkeypatch):
    """Which takes one of two iterations, and the last one, by gradients of both."""
    options = {"train_cfg.max_epochs": 1, "optim_wrapper.accumulative_counts": 2}
    moved, before = [], MultiTensorMeanTeacherHook.momentum_update

    def momentum_update(self, model, momentum):
        moved.append(momentum)
        before(self, model, momentum)

    monkeypatch.setattr(MultiTensorMeanTeacherHook, "momentum_update", momentum_update)
    runner = train(tiny_config(demo, tmp_path, **options))
    assert moved == [1] + [0.004] * -(-runner.iter // 2)  # first of all, the copy


def test_resuming_equals_no_interruption(demo, tmp_path):
    """Stopped after the first of three epochs and resumed: the same files in the end."""
    options = {"train_cfg.max_epochs": 3}
    train(tiny_config(demo, tmp_path / "whole", **options))

    class Killed(Exception):
        pass

    class KillHook(Hook):
        def after_train_iter(self, runner, *args, **kwargs):
            if runner.iter == 9:  # in the middle of the second epoch
                raise Killed

    runner = Runner.from_cfg(tiny_config(demo, tmp_path / "parts", **options))
    runner.register_hook(KillHook())
    with pytest.raises(Killed):
        runner.train()
    assert not (tmp_path / "parts/epoch_2.pth").exists()
    # Whatever the random state is now, it must not matter.
    torch.rand(17)
    resumed = train(tiny_config(demo, tmp_path / "parts", resume=True, **options))
    assert resumed.iter == 3 * len(resumed.train_dataloader)

    whole, parts = (load(tmp_path / d / "epoch_3.pth") for d in ("whole", "parts"))
    for key in ("state_dict", "optimizer", "param_schedulers"):
        assert_same(whole[key], parts[key], key)
    assert whole["meta"]["iter"] == parts["meta"]["iter"]
    assert any(key.startswith("teacher.") for key in whole["state_dict"])


def test_masks_in_the_annotation_file_change_nothing(demo, tmp_path):
    """Trained from a file with masks, from one without, and from one with wrong masks."""
    wrong = read_coco(demo / "instances_train.json")
    for ann in wrong["annotations"]:
        ann["segmentation"], ann["area"] = [[0, 0, 5, 0, 5, 5]], 3
    write_json(tmp_path / "wrong.json", wrong)
    weights = []
    files = [demo / "boxes_train.json", demo / "instances_train.json", tmp_path / "wrong.json"]
    for i, file in enumerate(files):
        cfg = tiny_config(demo, tmp_path / str(i), **{"train_cfg.max_epochs": 1})
        cfg.train_dataloader.dataset.dataset.ann_file = str(file)
        weights.append(train(cfg).model.state_dict())
    assert_same(weights[0], weights[1])
    assert_same(weights[0], weights[2])


def test_dist_train_and_dist_test_run_on_the_cpu(demo, tmp_path):
    cfg = tiny_config(demo, tmp_path / "work", **{"train_cfg.max_epochs": 1, "log_level": "INFO"})
    cfg.dump(tmp_path / "config.py")
    env = os.environ | dict(
        CUDA_VISIBLE_DEVICES="",
        OMP_NUM_THREADS="1",  # as the launcher has it for each of several processes
        PORT=free_port(),
        PATH=f"{Path(sys.executable).parent}:{os.defpath}",
    )

    def run(*command):
        done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr[-3000:]

    run("bash", ROOT / "tools/dist_train.sh", tmp_path / "config.py", "2")
    checkpoint = tmp_path / "work/epoch_1.pth"
    saved = load(checkpoint)
    boxes = len(read_coco(demo / "boxes_train.json")["annotations"])
    per_process = -(-boxes // 2)
    assert saved["meta"]["iter"] == -(-per_process // 4)  # batches of 4
    assert next(iter(saved["state_dict"])).startswith("student.")

    test = [tmp_path / "config.py", checkpoint]
    options = ["--work-dir", tmp_path / "two"]
    run("bash", ROOT / "tools/dist_test.sh", *test, "2", *options)
    run("python", ROOT / "tools/test.py", *test, "--work-dir", tmp_path / "one")
    one, two = (
        json.loads(next((tmp_path / name).glob("*/*.json")).read_text()) for name in ("one", "two")
    )
    counts = [
        re.findall(r"mask/num: (\d+)", next((tmp_path / name).glob("*/*.log")).read_text())
        for name in ("one", "two")
    ]
    assert counts[0] == counts[1] != []
    assert 0 < one["mask/miou"] < 1
    assert one["mask/miou"] == pytest.approx(two["mask/miou"])


@pytest.mark.parametrize("script", ["train", "test"])
def test_slurm_scripts_call_srun_with_the_tool(tmp_path, script):
    """An srun that writes down what it was asked."""
    srun = tmp_path / "srun"
    srun.write_text("#!/bin/sh\nprintf '%s\\n' \"$@\"\n")
    srun.chmod(0o755)
    env = os.environ | dict(PATH=f"{tmp_path}:{os.defpath}", GPUS="16", SRUN_ARGS="--quiet -N 2")
    command = ["bash", ROOT / f"tools/slurm_{script}.sh", "part", "job", "config.py", "fourth"]
    done = subprocess.run(
        [*command, "--cfg-options", "a=1 2"], env=env, capture_output=True, text=True, check=True
    )
    words = done.stdout.splitlines()
    start = words.index("python")
    asked = {"part", "--job-name=job", "--gres=gpu:8", "--ntasks=16", "--ntasks-per-node=8"}
    assert asked | {"--quiet"} <= set(words[:start])
    fourth = ["--work-dir", "fourth"] if script == "train" else ["fourth"]
    tool = f"{ROOT}/tools/{script}.py"
    options = ["--launcher", "slurm", "--cfg-options", "a=1 2"]
    assert words[start:] == ["python", "-u", tool, "config.py", *fourth, *options]
    usage = subprocess.run(command[:3], env=env, capture_output=True, text=True)
    assert usage.returncode == 2 and "Usage: bash tools/slurm" in usage.stderr
