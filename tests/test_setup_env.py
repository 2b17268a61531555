# SPDX-License-Identifier: Apache-2.0
"""What tools/setup_env.sh decides; that it installs everything is what tools/run_tests.sh starts
with."""

import shutil
import subprocess
import sys

import pytest
import torch

from tests.conftest import ROOT

sys.path.insert(0, str(ROOT / "tools"))
import mmcv_operators

CU130 = ["sm_75", "sm_80", "sm_86", "sm_90", "sm_100", "sm_120"]


@pytest.fixture
def gpu(monkeypatch, tmp_path):
    """A GPU of a capability, or none, and an nvcc of a version, or none; torch has CUDA 13.0."""

    def install(capability, nvcc=None):
        monkeypatch.setattr(torch.version, "cuda", "13.0")
        monkeypatch.setattr(torch.cuda, "is_available", lambda: capability is not None)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Tesla V100")
        monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: CU130)
        home = str(tmp_path) if nvcc else None
        monkeypatch.setattr(mmcv_operators, "cuda_home", lambda: home)
        (tmp_path / "bin").mkdir()
        if nvcc:
            compiler = tmp_path / "bin/nvcc"
            compiler.write_text(
                f"#!/bin/sh\necho Cuda compilation tools, release {nvcc}, V{nvcc}.48"
            )
            compiler.chmod(0o755)
        monkeypatch.setenv("PATH", str(tmp_path / "bin"))
        return mmcv_operators.choose_operators

    return install


@pytest.mark.parametrize(
    "capability, nvcc, device, operators, reason",
    [
        ((9, 0), "13.0", "auto", "cuda13.0-sm9.0", "matches torch"),
        ((8, 9), "13.0", "cuda", "cuda13.0-sm8.9", "matches torch"),
        ((9, 0), "12.8", "cuda", "cpu", "nvcc 13.0, found 12.8; phase 1 runs on the GPU"),
        ((9, 0), None, "auto", "cpu", "found none"),
        ((7, 0), "13.0", "cpu", "cpu", "was asked for"),
        (None, None, "auto", "cpu", "no NVIDIA GPU"),
    ],
)
def test_where_operators_will_run(gpu, capability, nvcc, device, operators, reason):
    found, why = gpu(capability, nvcc)(device)
    assert found == operators and reason in why


def test_a_gpu_that_torch_was_not_built_for(gpu):
    """Every kernel would fail on it, so an installation that goes on helps nobody."""
    with pytest.raises(
        SystemExit, match=r"not built for Tesla V100 \(sm_70\), but for sm_75 .*cpu"
    ):
        gpu((7, 0), "13.0")("auto")


def test_no_gpu_where_one_was_asked_for(gpu, tmp_path):
    choose = gpu(None)
    with pytest.raises(SystemExit, match="--device cuda was asked for, but torch finds no NVIDIA"):
        choose("cuda")
    (tmp_path / "bin/nvidia-smi").write_text("")
    (tmp_path / "bin/nvidia-smi").chmod(0o755)
    with pytest.raises(SystemExit, match=r"is the driver new enough for CUDA 13\.0"):
        choose("cuda")


@pytest.mark.parametrize(
    "capability, architectures, runs",
    [
        (86, ["sm_80"], True),
        (90, ["sm_80", "sm_86"], False),
        (75, ["sm_80"], False),
        (90, ["sm_80", "compute_80"], True),
        (75, ["compute_80"], False),
        (90, ["sm_90a"], True),
        (103, ["sm_100a"], False),
        (120, ["sm_100", "sm_120"], True),
    ],
)
def test_built_for(capability, architectures, runs):
    assert mmcv_operators.built_for(capability, architectures) == runs


@pytest.mark.parametrize(
    "installed, device, done",
    [
        ("cpu", "auto", True),
        ("cuda", "auto", True),
        ("cpu", "cpu", True),
        ("cuda", "cpu", True),
        ("cpu", "cuda", False),
        ("cuda", "cuda", True),
    ],
)
def test_what_is_installed_is_left_alone(tmp_path, installed, device, done):
    """Unless a GPU is asked for that the operators were not compiled for, or a version changes."""
    (tmp_path / "tools").mkdir()
    (tmp_path / ".venv").mkdir()
    shutil.copy(ROOT / "tools/setup_env.sh", tmp_path / "tools")
    files = ("constraints.txt", "requirements.txt", "requirements-dev.txt", "setup.py")
    for name in files:
        (tmp_path / name).write_text(f"{name}==1\n")
    wanted = "".join((tmp_path / name).read_text() for name in files).rstrip("\n")
    (tmp_path / ".venv/.mal_mmdet_installed").write_text(f"{installed}\n{wanted}")
    command = ["bash", tmp_path / "tools/setup_env.sh", "--device", device, "--python", "no-python"]

    def set_up():
        return subprocess.run(command, capture_output=True, text=True, timeout=300)

    assert (set_up().returncode == 0) == done
    (tmp_path / "requirements.txt").write_text("another\n")
    found = set_up()
    assert found.returncode == 1 and "no-python is not found" in found.stderr
