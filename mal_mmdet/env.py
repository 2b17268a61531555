# SPDX-License-Identifier: Apache-2.0
"""``python -m mal_mmdet.env`` prints what a bug report needs: system, devices, versions."""

from __future__ import annotations

import importlib.metadata
from importlib import import_module

from mmcv.ops import get_compiler_version, get_compiling_cuda_version
from mmengine.utils.dl_utils import collect_env as collect_base_env

from .dependencies import REQUIRED
from .version import __version__


def collect_env() -> dict[str, str]:
    """System, devices and versions: MMEngine's list, the packages this one needs, and itself."""
    env = {name: str(value) for name, value in collect_base_env().items()}
    env["mmcv's compiler"] = get_compiler_version()
    env["mmcv's CUDA compiler"] = get_compiling_cuda_version()
    for name, (_, package) in REQUIRED.items():
        if "." not in name:
            version = getattr(import_module(name), "__version__", None)
            env[name] = version or importlib.metadata.version(package)
    return env | dict(mal_mmdet=__version__)


if __name__ == "__main__":
    for name, value in collect_env().items():
        print(f"{name}: {value}")
