# SPDX-License-Identifier: Apache-2.0
import pytest
from mmengine.config import Config

from mal_mmdet.apis import full_precision_without_gpu, launch, use_detections
from tests.conftest import ROOT


@pytest.mark.parametrize("gpu", [True, False])
def test_mixed_precision_needs_a_gpu(gpu, monkeypatch, capsys):
    monkeypatch.setattr(launch, "get_device", lambda: "cuda" if gpu else "cpu")
    cfg = Config.fromfile(ROOT / "configs/mal/mal_vit-base-mae_8xb4-10e_coco.py")
    optimizer = cfg.optim_wrapper.optimizer.to_dict()
    full_precision_without_gpu(cfg)
    if gpu:
        assert cfg.optim_wrapper.type == "AmpOptimWrapper"
        assert cfg.optim_wrapper.loss_scale == "dynamic"
    else:
        assert cfg.optim_wrapper.to_dict() == dict(type="OptimWrapper", optimizer=optimizer)
        assert "float32" in capsys.readouterr().out


def test_mask_ap_of_detections_needs_human_masks():
    cfg = Config.fromfile(ROOT / "configs/mal/mal_vit-base-mae_8xb4-10e_voc.py")
    with pytest.raises(ValueError, match=r"test_evaluator.ann_file .* test_evaluator=\[\]"):
        use_detections(cfg, "results.json")
    lvis = Config.fromfile(ROOT / "configs/mal/mal_vit-base-mae_8xb4-10e_lvis-v1.py")
    truth = lvis.test_evaluator.ann_file
    use_detections(lvis, "results.json")
    assert lvis.test_evaluator == dict(type="LVISMetric", ann_file=truth, metric="segm")
    assert lvis.test_dataloader.dataset.dataset.detections == "results.json"
