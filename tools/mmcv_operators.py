#!/usr/bin/env python
# SPDX-License-Identifier: Apache-2.0
"""Prints where mmcv's operators will run: ``cpu``, or ``cuda<version>-sm<capability>``.

For tools/setup_env.sh, once torch is installed; says on stderr why.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys

import torch


def choose_operators(device: str) -> tuple[str, str]:
    """Where operators for ``'auto'``, ``'cpu'`` or ``'cuda'`` will run, and why.

    Raises:
        SystemExit: A GPU was asked for and there is none, or torch was not built for the one there.
    """
    if device == "cpu":
        return "cpu", "the CPU was asked for"
    if not torch.cuda.is_available():
        why = "torch finds no NVIDIA GPU"
        if not torch.version.cuda:
            why += f": {torch.__version__} was built without CUDA"
        elif shutil.which("nvidia-smi"):
            why += (
                f", though nvidia-smi is there: is the driver new enough for CUDA "
                f"{torch.version.cuda}, and does CUDA_VISIBLE_DEVICES hide no GPU?"
            )
        if device == "cuda":
            raise SystemExit(f"--device cuda was asked for, but {why}")
        return "cpu", why
    major, minor = torch.cuda.get_device_capability()
    if not built_for(10 * major + minor, torch.cuda.get_arch_list()):
        raise SystemExit(
            f"torch {torch.__version__} was not built for {torch.cuda.get_device_name()} "
            f"(sm_{major}{minor}), but for {' '.join(torch.cuda.get_arch_list())}. Install that "
            "version of torch and torchvision for another CUDA in .venv (pytorch.org lists them), "
            "or take --device cpu"
        )
    found = nvcc_version(cuda_home())
    if found != torch.version.cuda:
        return "cpu", (
            f"torch needs nvcc {torch.version.cuda}, found {found or 'none'}; "
            "phase 1 runs on the GPU, phase 2 on the CPU"
        )
    return f"cuda{found}-sm{major}.{minor}", f"nvcc {found} matches torch"


def built_for(capability: int, architectures: list[str]) -> bool:
    """Whether a GPU, say of 86, runs code for ``['sm_80', …]``: of its generation, or PTX.

    ``sm_90a`` and the like run on that very capability alone.
    """
    for name in architectures:
        kind, number = name.split("_")
        if number[-1].isalpha():
            runs = capability == int(number[:-1])
        else:
            same = capability // 10 == int(number) // 10
            runs = capability >= int(number) and (same or kind == "compute")
        if runs:
            return True
    return False


def cuda_home() -> str | None:
    """Folder of the CUDA toolkit that torch's extensions would be built with."""
    from torch.utils.cpp_extension import CUDA_HOME  # brings setuptools along

    return CUDA_HOME


def nvcc_version(home: str | None) -> str | None:
    """Such as ``'13.0'``, of the compiler in a CUDA toolkit."""
    nvcc = shutil.which(os.path.join(home, "bin", "nvcc")) if home else None
    if not nvcc:
        return None
    text = subprocess.run([nvcc, "--version"], capture_output=True, text=True).stdout
    match = re.search(r"release (\d+\.\d+)", text)
    return match and match[1]


if __name__ == "__main__":
    operators, reason = choose_operators(sys.argv[1])
    print(f"mmcv's operators will be for {operators}: {reason}", file=sys.stderr)
    print(operators)
