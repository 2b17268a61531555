# SPDX-License-Identifier: Apache-2.0
import pytest
import torch
from mmengine.config import Config

from mal_mmdet.apis import full_precision_without_gpu
from tests.conftest import ROOT


@pytest.mark.parametrize("gpu", [True, False])
def test_mixed_precision_needs_a_gpu(gpu, monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    cfg = Config.fromfile(ROOT / "configs/mal/mal_vit-base-mae_8xb4-10e_coco.py")
    optimizer = cfg.optim_wrapper.optimizer.to_dict()
    full_precision_without_gpu(cfg)
    if gpu:
        assert cfg.optim_wrapper.type == "AmpOptimWrapper"
        assert cfg.optim_wrapper.loss_scale == "dynamic"
    else:
        assert cfg.optim_wrapper.to_dict() == dict(type="OptimWrapper", optimizer=optimizer)
        assert "float32" in capsys.readouterr().out
