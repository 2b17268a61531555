# SPDX-License-Identifier: Apache-2.0
from types import SimpleNamespace

import pytest
import torch
from mmengine.config import Config
from mmengine.logging import MessageHub
from mmengine.runner import Runner

from mal_mmdet.engine import LossCheckHook
from mal_mmdet.models import MaskAutoLabeler
from tests.conftest import ROOT, tiny_config


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_training_ends_with_the_crops_of_the_loss(demo, tmp_path, monkeypatch, value):
    cfg = tiny_config(demo, tmp_path)
    loss, seen = MaskAutoLabeler.loss, []

    def loss_or_nan(self, inputs, samples):
        seen.append([sample.gt_instances.ann_ids[0] for sample in samples])
        losses = loss(self, inputs, samples)
        if len(seen) == 7:
            losses["loss_crf"] = losses["loss_crf"] * value
        return losses

    monkeypatch.setattr(MaskAutoLabeler, "loss", loss_or_nan)
    with pytest.raises(
        FloatingPointError, match=r"not finite in iteration 7.*'loss_crf': "
    ) as error:
        Runner.from_cfg(cfg).train()
    assert len(seen) == 7
    text = str(error.value)
    for ann_id in seen[-1]:
        assert f"  annotation {ann_id} in {demo}/train/0000" in text
    assert text.count(".jpg, box [") == len(seen[-1]) == 4
    assert [path.name for path in tmp_path.glob("*.pth")] == ["epoch_1.pth"]


class Untouchable:
    """A tensor of a GPU that nothing should wait for."""

    def __getattr__(self, name):
        raise AssertionError(f"{name} was asked for")


def check(**losses):
    hub = MessageHub.get_instance("losses")
    for name, value in losses.items():
        hub.update_scalar(f"train/{name}", value)
    runner = SimpleNamespace(message_hub=hub, iter=0)
    outputs = {name: Untouchable() for name in losses}
    LossCheckHook().after_train_iter(runner, 0, dict(data_samples=dict(student=[])), outputs)


def test_weights_that_a_gradient_has_made_nan_are_not_saved(demo, tmp_path):
    """The loss of that step was finite, and the next one would come after the checkpoint."""
    cfg = tiny_config(demo, tmp_path)
    runner = Runner.from_cfg(cfg)
    steps = len(runner.train_loop.dataloader)
    weight, seen = next(p for p in runner.model.student.parameters() if p.ndim > 1), []

    def spoil(gradient):
        seen.append(1)
        return gradient * float("nan") if len(seen) == 2 * steps else gradient

    weight.register_hook(spoil)
    with pytest.raises(FloatingPointError, match=r"student.* is not finite: no checkp"):
        runner.train()
    (saved,) = tmp_path.glob("*.pth")
    assert saved.name == "epoch_1.pth"
    state = torch.load(saved, weights_only=False)["state_dict"]
    assert all(value.isfinite().all() for value in state.values())


def test_it_reads_numbers_that_are_on_the_cpu_already():
    check(loss=0.5, loss_mil=0.4)
    with pytest.raises(FloatingPointError, match="'loss_mil': inf"):
        check(loss=0.5, loss_mil=float("inf"))


def test_an_overflow_that_the_scaler_of_gradients_takes_care_of_is_none():
    """Its step is left out; the norm of the gradient is logged, and is no loss."""
    check(loss=0.5, grad_norm=float("inf"))
    weight = torch.ones(1, requires_grad=True)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**127)
    optimizer = torch.optim.SGD([weight], lr=1.0)
    loss = (3 * weight).sum()
    scaler.scale(loss).backward()
    assert torch.isfinite(loss) and not torch.isfinite(weight.grad)
    scaler.step(optimizer)
    scaler.update()
    assert weight.item() == 1 and scaler.get_scale() < 2.0**127
    check(loss=loss.item())


def test_the_configs_of_phase_1_have_it():
    hooks = Config.fromfile(ROOT / "configs/_base_/default_runtime.py").default_hooks
    assert hooks.loss_check.type == "LossCheckHook"
