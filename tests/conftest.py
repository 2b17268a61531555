# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import ctypes
import itertools
import os
import random
import socket
from pathlib import Path

import numpy as np
import pytest
import torch
import yapf.yapflib.yapf_api
from mmdet.utils import register_all_modules
from mmdet.visualization import DetLocalVisualizer
from mmengine.config import Config
from mmengine.logging import MessageHub, MMLogger
from mmengine.visualization import Visualizer

import mal_mmdet  # noqa: F401
from mal_mmdet.datasets.demo_dataset import make_demo_dataset

ROOT = Path(__file__).parents[1]
LAUNCHER = {"NNODES", "NODE_RANK", "PORT", "MASTER_ADDR", "MASTER_PORT"}
LAUNCHER |= {"RANK", "LOCAL_RANK", "WORLD_SIZE"}
OPTIONS = {"GPUS_PER_NODE", "CPUS_PER_TASK", "GRES", "SRUN_ARGS"}  # of tools/slurm_*.sh
FEW_AND_LONG = {"test_training.py", "test_full_disk.py", "test_tutorial.py", "test_soak.py"}
FEW_AND_LONG |= {"test_distributed.py"}

# What tests find in the environment is what they put there. They run on the CPU, unless a GPU is
# named.
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")
for name in ("COLUMNS", "FORCE_COLOR", "TTY_COMPATIBLE"):
    os.environ.pop(name, None)

# Each process of tests has ports of its own, below those that the kernel gives to whoever asks.
PORTS = itertools.count(20_000 + os.getpid() * 37 % 12_000)

os.chdir(ROOT)  # from where forked.py's server imports tests
torch.set_num_threads(1)  # the tests' networks are too small to share
register_all_modules(init_default_scope=True)
# A runner formats its config four times, which takes longer than most runs in these tests.
yapf.yapflib.yapf_api.FormatCode = lambda text, **options: (text, False)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Puts files of few and long tests first: such a one at the end would be waited for."""
    items.sort(key=lambda item: item.path.name not in FEW_AND_LONG)


def free_port() -> str:
    """A port of this machine that nobody listens to, for ``MASTER_PORT``."""
    for port in PORTS:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)):
                return str(port)


@pytest.fixture(autouse=True)
def _no_launcher(monkeypatch):
    """Tests that run inside of a job of a cluster are no part of it."""
    for name in list(os.environ):
        if name.startswith("SLURM_") or name in LAUNCHER | OPTIONS:
            monkeypatch.delenv(name)


def forget_runners() -> None:
    """The next runner of this process gets a logger and visualizer of its own.

    Runners name theirs by config file and second, and take what is there of that name, with
    the level and the stream of an earlier test.
    """
    for manager in (MMLogger, MessageHub, DetLocalVisualizer, Visualizer):
        manager._instance_dict.clear()


@pytest.fixture(autouse=True)
def _scope_and_seed():
    forget_runners()  # those of fixtures that serve several tests
    register_all_modules(init_default_scope=True)  # a runner in a test changes the scope
    torch.manual_seed(0)
    np.random.seed(0)
    random.seed(0)
    yield
    forget_runners()  # such a fixture may come before the next test's


@pytest.fixture(scope="module", autouse=True)
def _memory_goes_back():
    """The C library would keep what networks of full size took: 8 GB for each process of tests."""
    yield
    ctypes.CDLL(None).malloc_trim(0)


@pytest.fixture(scope="session")
def demo(tmp_path_factory) -> Path:
    """A demo data set of 8 training and 4 validation images."""
    out = tmp_path_factory.mktemp("demo")
    make_demo_dataset(out, seed=3, num_train=8, num_val=4)
    return out


def tiny_config(demo: Path, work_dir: Path, **options) -> Config:
    """The demo config with a network of a few thousand weights, on the CPU."""
    cfg = Config.fromfile(ROOT / "configs/mal/mal_vit-demo_1xb16_demo.py")
    arch = dict(embed_dims=32, num_layers=1, num_heads=2, feedforward_channels=32)
    cfg.merge_from_dict(
        {
            "work_dir": str(work_dir),
            "model.network.backbone.arch": arch,
            "model.network.backbone.img_size": 32,
            "model.network.backbone.patch_size": 8,
            "model.network.decoder": dict(in_channels=32, channels=16),
            "model.crf_loss.num_steps": 10,
            "model.flip_test": False,
            "train_dataloader.batch_size": 4,
            "train_dataloader.num_workers": 0,
            "train_dataloader.persistent_workers": False,
            "train_dataloader.dataset.pipeline.1.size": 32,
            "train_dataloader.dataset.dataset.data_root": str(demo),
            "test_dataloader.num_workers": 0,
            "test_dataloader.dataset.pipeline.1.size": 32,
            "test_dataloader.dataset.dataset.data_root": str(demo),
            "test_evaluator.ann_file": str(demo / "instances_val.json"),
            "train_cfg.max_epochs": 2,
            "log_level": "WARNING",
            **options,
        }
    )
    return cfg
