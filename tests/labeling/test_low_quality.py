# SPDX-License-Identifier: Apache-2.0
"""The options in docs/quality.md keep stock detectors away from ignored boxes."""

import re
from pathlib import Path

import pytest
import torch
from mmdet.registry import TASK_UTILS
from mmengine.config import Config
from mmengine.hub import get_config
from mmengine.structures import InstanceData

DOCS = Path(__file__).parents[2] / "docs/quality.md"


@pytest.mark.parametrize("stage", ["rpn", "rcnn"])
def test_stock_assigners_ignore_crowds_with_the_documented_options(stage):
    cfg = get_config("mmdet::mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py")
    options = dict(
        option.split("=") for option in re.findall(r"model\.train_cfg\S+=\S+", DOCS.read_text())
    )
    assert len(options) == 2
    priors = InstanceData(priors=torch.tensor([[10.0, 10, 50, 50], [100, 100, 150, 150]]))
    low = InstanceData(bboxes=torch.tensor([[8.0, 8, 52, 52]]))
    true = InstanceData(bboxes=torch.tensor([[300.0, 300, 400, 400]]), labels=torch.tensor([1]))

    def assigned(cfg: Config) -> list[int]:
        assigner = TASK_UTILS.build(cfg.model.train_cfg[stage].assigner)
        return assigner.assign(priors, true, low).gt_inds.tolist()

    assert assigned(cfg) == [0, 0]  # stock: both are background
    cfg.merge_from_dict({key: float(value) for key, value in options.items()})
    assert assigned(cfg) == [-1, 0]
