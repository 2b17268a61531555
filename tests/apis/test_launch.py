# SPDX-License-Identifier: Apache-2.0
import os
import subprocess
import sys

import pytest
import torch
from mmengine.config import Config

from mal_mmdet.apis import (
    full_precision_without_gpu,
    launch,
    read_config,
    readable_errors,
    refuse_sharded_validation,
    use_detections,
)
from mal_mmdet.labeling import read_coco
from mal_mmdet.labeling.shards import LabelShards
from mal_mmdet.structures.crop_geometry import span_coverage
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


def test_what_is_refused_in_words_needs_no_traceback(monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "argv", ["tools/some_tool.py"])
    words = r"^some_tool\.py: .*nope\.json does not exist$"
    with pytest.raises(SystemExit, match=words), readable_errors():
        read_coco(tmp_path / "nope.json")
    with pytest.raises(SystemExit, match=r"there is no config .*nope\.py$"), readable_errors():
        read_config(tmp_path / "nope.py")
    (tmp_path / "shards").mkdir()
    (tmp_path / "shards/0.shard").touch()
    words = r"^some_tool\.py: .*shards holds 1 shards .*--resume"
    with pytest.raises(SystemExit, match=words), readable_errors():
        LabelShards(tmp_path / "shards").open(resume=False)
    # PyTorch's, though the last frame is this package's.
    with pytest.raises(RuntimeError, match="size of tensor a"), readable_errors():
        span_coverage(torch.zeros(3), torch.zeros(4), 5)
    for error in (ValueError("of another's code"), KeyError("a bug")):
        with pytest.raises(type(error)), readable_errors():
            raise error
    monkeypatch.setenv("MAL_MMDET_TRACEBACK", "1")
    with pytest.raises(FileNotFoundError), readable_errors():
        read_coco(tmp_path / "nope.json")


def test_sharded_networks_are_not_validated():
    cfg = Config.fromfile(ROOT / "configs/mal/mal_vit-huge-p14-mae_8xb4-10e_coco-fsdp.py")
    refuse_sharded_validation(cfg)
    cfg.val_cfg = dict(type="ValLoop")
    with pytest.raises(ValueError, match=r"ResumableFSDPStrategy.*set val_cfg.*tools/test.py"):
        refuse_sharded_validation(cfg)
    cfg.model.type = "MaskRCNN"  # whose validation is a forward pass
    refuse_sharded_validation(cfg)
    cfg.model.type = "MaskAutoLabeler"
    for strategy in (dict(type="DDPStrategy"), dict(model_wrapper=dict()), None):
        cfg.strategy = strategy
        refuse_sharded_validation(cfg)


def test_ranks_wait_as_long_as_asked_whatever_the_config_says():
    for before in (dict(), dict(env_cfg=dict(dist_cfg=dict(backend="gloo")))):
        cfg = Config(before)
        launch.set_launcher(cfg, "none", timeout=7)
        assert cfg.env_cfg.dist_cfg.timeout == 7
        assert cfg.env_cfg.dist_cfg.get("backend") == ("gloo" if before else None)


def test_mpi_says_which_gpu_of_a_machine_is_a_ranks(monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "0")
    with pytest.raises(ValueError, match=r"OMPI_COMM_WORLD_LOCAL_RANK is not set.*mpirun"):
        launch.set_launcher(Config(), "mpi")
    monkeypatch.setenv("OMPI_COMM_WORLD_LOCAL_RANK", "3")
    launch.set_launcher(Config(), "mpi")
    assert os.environ["LOCAL_RANK"] == "3"


def test_mask_ap_of_detections_needs_human_masks():
    cfg = Config.fromfile(ROOT / "configs/mal/mal_vit-base-mae_8xb4-10e_voc.py")
    with pytest.raises(ValueError, match=r"test_evaluator.ann_file .* test_evaluator=\[\]"):
        use_detections(cfg, "results.json")
    lvis = Config.fromfile(ROOT / "configs/mal/mal_vit-base-mae_8xb4-10e_lvis-v1.py")
    truth = lvis.test_evaluator.ann_file
    use_detections(lvis, "results.json")
    assert lvis.test_evaluator == dict(type="LVISMetric", ann_file=truth, metric="segm")
    assert lvis.test_dataloader.dataset.dataset.detections == "results.json"


@pytest.mark.parametrize(
    "own, expected",
    [
        ({}, dict(broadcast_buffers=False, find_unused_parameters=False)),
        (
            dict(find_unused_parameters=True),
            dict(broadcast_buffers=False, find_unused_parameters=True),
        ),
        (
            dict(model_wrapper_cfg=dict(type="MMDistributedDataParallel", static_graph=True)),
            dict(static_graph=True),
        ),
    ],
)
def test_wrappers_of_cpus_are_those_of_gpus(monkeypatch, own, expected):
    monkeypatch.setattr(launch.torch.distributed, "init_process_group", lambda backend: None)
    monkeypatch.setattr(launch.atexit, "register", lambda function: None)
    cfg = Config(own)
    launch.set_launcher(cfg, "pytorch")
    expected = dict(type="MMDistributedDataParallel", device_ids=None) | expected
    assert cfg.model_wrapper_cfg.to_dict() == expected


LATE_COLLECTIVE = """
import atexit, ctypes, os, sys, time
rank = int(os.environ["RANK"])
if rank == 0:  # registered first, called last: Python ends while this holds its lock
    atexit.register(lambda: ctypes.PyDLL(None).usleep(1500000))
import torch
from mmengine.config import Config
from mal_mmdet.apis import set_launcher

def main():
    set_launcher(Config(), "pytorch")
    model = torch.nn.parallel.DistributedDataParallel(torch.nn.Linear(1, 1))
    model.cycle = [model]  # as the runner's
    if rank:
        time.sleep(0.5)
        torch.distributed.all_reduce(torch.ones(1))
    else:
        sys.setswitchinterval(100)
        torch.distributed.all_reduce(torch.ones(1), async_op=True)

main()
"""


def test_threads_of_the_group_end_before_the_interpreter(tmp_path):
    """A thread that frees a collective's tensors after Python's end would abort the process."""
    (tmp_path / "late.py").write_text(LATE_COLLECTIVE)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc_per_node=2", tmp_path / "late.py"]
    env = os.environ | dict(CUDA_VISIBLE_DEVICES="", OMP_NUM_THREADS="1")
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
