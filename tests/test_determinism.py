# SPDX-License-Identifier: Apache-2.0
"""The same seed on the same machine gives the same weights. Labels: tests/test_label_faults.py."""

import torch
from mmengine.runner import Runner

from tests.conftest import tiny_config
from tests.test_training import assert_same


def weights(demo, work_dir, **loader):
    options = {f"train_dataloader.{key}": value for key, value in loader.items()}
    cfg = tiny_config(demo, work_dir, **{"model.crf_loss.num_steps": 5, **options})
    cfg.train_cfg.max_epochs = 10
    cfg.default_hooks.checkpoint.interval = 100
    runner = Runner.from_cfg(cfg)
    runner.train()
    assert runner.iter == 50
    return runner.model.state_dict()


def test_workers_do_not_change_fifty_steps(demo, tmp_path):
    none = weights(demo, tmp_path / "none")
    two = weights(demo, tmp_path / "two", num_workers=2, persistent_workers=True)
    assert_same(none, two)
    name = "backbone.pos_embed"  # the teacher's follows that of the student from afar
    assert not torch.equal(none[f"student.{name}"], none[f"teacher.{name}"])
