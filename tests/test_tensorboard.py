# SPDX-License-Identifier: Apache-2.0
"""Training reports to TensorBoard if it is asked to on the command line."""

import json
import runpy
import sys

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.conftest import ROOT, tiny_config


def test_scalars_and_pictures_by_option(demo, tmp_path, monkeypatch):
    """As ``configs/_base_/default_runtime.py`` says; the event file holds every step."""
    cfg = tiny_config(demo, tmp_path / "work", **{"train_cfg.max_epochs": 1})
    cfg.custom_hooks[0].update(interval=2, num_samples=3, size=48)
    cfg.dump(tmp_path / "config.py")
    options = ["visualizer.vis_backends.0.type=TensorboardVisBackend"]
    options += ["default_hooks.logger.interval=1"]
    command = ["train.py", str(tmp_path / "config.py"), "--cfg-options", *options]
    monkeypatch.setattr(sys, "argv", command)
    runpy.run_path(str(ROOT / "tools/train.py"), run_name="__main__")

    (events,) = tmp_path.rglob("events.out.tfevents*")
    found = EventAccumulator(str(events))
    found.Reload()
    boxes = len(json.loads((demo / "boxes_train.json").read_text())["annotations"])
    steps = list(range(1, -(-boxes // 4) + 1))  # batches of 4
    losses = {}
    for name in ("loss", "loss_mil", "loss_crf", "lr"):
        scalars = found.Scalars(name)
        assert [scalar.step for scalar in scalars] == steps
        losses[name] = [scalar.value for scalar in scalars]
    for loss, mil, crf in zip(losses["loss"], losses["loss_mil"], losses["loss_crf"]):
        assert loss == pytest.approx(mil + crf, abs=1e-4)
    pictures = found.Images("train_masks")
    assert [picture.step for picture in pictures] == steps[1::2]
    # Of two tiles of three panels in a row, and two rows.
    assert {(picture.width, picture.height) for picture in pictures} == {(2 * 152, 2 * 52)}
    assert not list(tmp_path.rglob("scalars.json"))  # it took the place of the local files
