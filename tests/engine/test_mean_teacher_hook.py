# SPDX-License-Identifier: Apache-2.0
import copy

import pytest
import torch
from mmdet.engine.hooks import MeanTeacherHook
from mmengine.config import Config
from mmengine.hooks import EmptyCacheHook
from mmengine.runner import Runner
from torch import nn

from mal_mmdet.engine import LossCheckHook, MultiTensorMeanTeacherHook
from tests.conftest import ROOT, tiny_config


def pair():
    torch.manual_seed(0)
    model = nn.Module()
    for name in ("student", "teacher"):
        network = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2, bias=False))
        model.add_module(name, network)
    nn.init.normal_(model.student[1].running_mean)
    model.teacher.requires_grad_(False)
    return model


@pytest.mark.parametrize("momentum", [0.004, 0.3, 0.9])
def test_equals_the_original(momentum):
    model = pair()
    expected = copy.deepcopy(model)
    for _ in range(3):
        MultiTensorMeanTeacherHook(momentum).momentum_update(model, momentum)
        MeanTeacherHook(momentum).momentum_update(expected, momentum)
    parameters = dict(expected.named_parameters())
    torch.testing.assert_close(dict(model.named_parameters()), parameters)
    assert not torch.equal(model.teacher[0].weight, pair().teacher[0].weight)


def test_begins_with_a_copy():
    model = pair()
    student = copy.deepcopy(model.student.state_dict())
    MultiTensorMeanTeacherHook(0.004).momentum_update(model, 1)
    for name, value in model.teacher.named_parameters():
        assert torch.equal(value, student[name]), name
    torch.testing.assert_close(dict(model.student.state_dict()), dict(student), rtol=0, atol=0)
    assert all(value.grad_fn is None for value in model.teacher.parameters())


def test_statistics_that_the_student_learns():
    """One momentum later the teacher normalises as the student does."""
    model = pair()
    hook = MultiTensorMeanTeacherHook(0.004)
    hook.momentum_update(model, 1)
    model.student.train()(torch.randn(8, 3) + 5)
    hook.momentum_update(model, 0.004)
    student, teacher = model.student[1], model.teacher[1]
    assert torch.equal(teacher.running_mean, student.running_mean) and student.running_mean.any()
    assert torch.equal(teacher.num_batches_tracked, student.num_batches_tracked)
    student.running_mean.zero_()
    assert teacher.running_mean.any()  # a copy


def test_networks_that_differ():
    model = pair()
    model.teacher = model.teacher[:2]
    with pytest.raises(RuntimeError):
        MultiTensorMeanTeacherHook(0.004).momentum_update(model, 0.004)


@pytest.mark.parametrize("momentum", [0, 1, -0.1])
def test_bad_momentum(momentum):
    with pytest.raises(ValueError, match=f"momentum is {momentum}, but must lie between 0 and 1"):
        MultiTensorMeanTeacherHook(momentum)


def test_hooks_of_a_users_config_leave_it_there(demo, tmp_path):
    """A list in a config takes the place of the one in its base."""
    base = ROOT / "configs/mal/mal_vit-demo_1xb16_demo.py"
    hooks = "custom_hooks = [dict(type='EmptyCacheHook')]"
    (tmp_path / "own.py").write_text(f"_base_ = {str(base)!r}\n{hooks}\n")
    own = Config.fromfile(tmp_path / "own.py")
    cfg = tiny_config(demo, tmp_path / "work", custom_hooks=own.custom_hooks)
    cfg.default_hooks = own.default_hooks
    kinds = [type(hook) for hook in Runner.from_cfg(cfg).hooks]
    assert {MultiTensorMeanTeacherHook, LossCheckHook, EmptyCacheHook} <= {*kinds}


def test_a_second_hook_is_refused(demo, tmp_path):
    hooks = [dict(type="mmdet.MeanTeacherHook")]
    runner = Runner.from_cfg(tiny_config(demo, tmp_path, custom_hooks=hooks))
    with pytest.raises(ValueError, match="two hooks move the teacher"):
        runner.train()


def test_a_hook_follows_the_model_that_it_is_given():
    hook, first, second = MultiTensorMeanTeacherHook(0.5), pair(), pair()
    for model in (first, second, second):
        before = model.teacher[0].weight.clone()
        hook.momentum_update(model, 0.5)
        assert not torch.equal(model.teacher[0].weight, before)
