# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest
import torch
from mmengine.runner import Runner
from PIL import Image

from mal_mmdet.engine import MaskVisualizationHook
from mal_mmdet.engine.mask_visualization_hook import student_probs
from tests.conftest import forget_runners, tiny_config

DROPOUT = {"model.network.backbone.drop_rate": 0.3, "model.network.backbone.drop_path_rate": 0.2}


def config(demo, work_dir, *hooks, **options):
    cfg = tiny_config(demo, work_dir, **{"train_cfg.max_epochs": 1, **DROPOUT, **options})
    cfg.custom_hooks = hooks
    return cfg


def train(cfg):
    forget_runners()
    runner = Runner.from_cfg(cfg)
    runner.train()
    return runner


def hook(**options):
    return dict(type="MaskVisualizationHook", **options)


def test_training_is_the_same_to_the_bit(demo, tmp_path):
    """With dropout and drop path, which draw from the random state in training mode."""
    without = train(config(demo, tmp_path / "without"))
    state = torch.get_rng_state()
    with_hook = train(config(demo, tmp_path / "with", hook(interval=1, num_samples=2)))
    assert torch.equal(torch.get_rng_state(), state)
    weights = with_hook.model.state_dict()
    for key, value in without.model.state_dict().items():
        assert torch.equal(value, weights[key]), key
    steps = range(1, with_hook.iter + 1)
    names = {path.name for path in (tmp_path / "with").rglob("*.png")}
    assert names == {f"train_masks_{i}.png" for i in steps} and len(steps) > 2
    assert not list((tmp_path / "without").rglob("*.png"))


def test_interval_and_picture(demo, tmp_path):
    train(config(demo, tmp_path, hook(interval=2, num_samples=3, size=48)))
    names = {path.name for path in tmp_path.rglob("*.png")}
    assert "train_masks_2.png" in names and "train_masks_4.png" in names
    assert not {"train_masks_1.png", "train_masks_3.png"} & names
    (path,) = tmp_path.rglob("train_masks_2.png")
    sheet = np.asarray(Image.open(path))
    assert sheet.shape == (2 * (48 + 4), 2 * (3 * 48 + 8), 3)
    tile = sheet[2:50, 4:148].astype(int)
    crop, grey, masked = tile[:, :48], tile[:, 48:96], tile[:, 96:]
    assert (crop[..., 1] - crop[..., 0] > 80).sum() > 50  # the box's green lines
    assert np.ptp(grey, axis=2).max() == 0 and np.ptp(grey) > 0
    assert (masked[..., 0] - masked[..., 2] > 60).any()


def test_student_probs_leave_no_trace(demo, tmp_path):
    """Modes are put back module by module, as frozen parts are in evaluation mode in training."""
    model = Runner.from_cfg(config(demo, tmp_path)).model.train()
    model.student.backbone.patch_embed.eval()
    modes = [m.training for m in model.modules()]
    crops = torch.randint(0, 256, (3, 3, 32, 32), dtype=torch.uint8)
    areas = torch.tensor([100.0, 4000.0, 90000.0])
    state = torch.get_rng_state()
    probs = student_probs(model, [*crops], areas)
    assert torch.equal(torch.get_rng_state(), state)
    assert [m.training for m in model.modules()] == modes and {*modes} == {True, False}
    assert probs.shape == (3, 32, 32) and not probs.requires_grad

    model.eval()
    with torch.no_grad():
        mean, std = model.data_preprocessor.mean, model.data_preprocessor.std
        logits = model.student((crops.flip(1).float() - mean) / std, areas)
    up = torch.nn.Upsample((32, 32), mode="bilinear")(logits[:, None])[:, 0]
    torch.testing.assert_close(probs, up.sigmoid())


def test_modes_are_put_back_after_an_error(demo, tmp_path, monkeypatch):
    model = Runner.from_cfg(config(demo, tmp_path)).model.train()

    def fail(*args):
        raise RuntimeError("out of memory")

    monkeypatch.setattr(model.student, "forward", fail)
    with pytest.raises(RuntimeError, match="out of memory"):
        student_probs(model, [torch.zeros(3, 32, 32, dtype=torch.uint8)], torch.ones(1))
    assert model.student.training and model.student.decoder.training


@pytest.mark.parametrize("option", ["interval", "num_samples", "size"])
def test_bad_options(option):
    with pytest.raises(ValueError, match=f"{option} is 0, but must be at least 1"):
        MaskVisualizationHook(**{option: 0})
