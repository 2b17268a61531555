# SPDX-License-Identifier: Apache-2.0
"""What is sharded; tests/test_distributed.py trains with it."""

import pytest
import torch
from mmdet.registry import MODELS
from mmengine.config import Config
from mmengine.registry import FUNCTIONS

from mal_mmdet.engine import ResumableFSDPStrategy
from tests.conftest import ROOT

PLAIN = ROOT / "configs/mal/mal_vit-huge-p14-mae_8xb4-10e_coco.py"


def test_config_shards_both_networks_alike_and_changes_nothing_else():
    cfg = Config.fromfile(PLAIN.with_stem(f"{PLAIN.stem}-fsdp"))
    with torch.device("meta"):
        model = MODELS.build(cfg.model)
    wrap = FUNCTIONS.get(cfg.strategy.model_wrapper.auto_wrap_policy)
    check = FUNCTIONS.get(cfg.strategy.activation_checkpointing.check_fn)
    modules = dict(model.named_modules())
    assert all(wrap(module, True, 0) for module in modules.values())
    layers = [f"backbone.layers.{i}" for i in range(32)]
    units = {name for name, module in modules.items() if wrap(module, False, 0)}
    networks = ("student", "teacher")
    assert units == {*networks, *(f"{n}.{layer}" for n in networks for layer in layers)}
    assert {name for name, module in modules.items() if check(module)} == units - {*networks}
    assert cfg.pop("runner_type") == "FlexibleRunner" and cfg.pop("strategy")
    plain = Config.fromfile(PLAIN).to_dict()
    assert plain["optim_wrapper"]["optimizer"].pop("fused")
    assert not cfg.optim_wrapper.optimizer.pop("fused")
    assert cfg.to_dict() == plain


@pytest.mark.parametrize("cfg", ["local", "full", dict(state_dict_type="SHARDED_STATE_DICT")])
def test_checkpoints_are_not_sharded(cfg):
    with pytest.raises(ValueError, match=r"state_dict_cfg is .*: checkpoints are always whole"):
        ResumableFSDPStrategy(state_dict_cfg=cfg)
