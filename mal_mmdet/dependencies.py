# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module

# Import name → (oldest version that works, what to install); mmengine stands first, since its
# version comparison serves the others.
REQUIRED = {
    "mmengine": ("0.10.12", "onedl-mmengine"),
    "torch": ("2.7.0", "torch"),
    "torchvision": ("0.22.0", "torchvision"),
    "mmcv": ("2.3.0", "onedl-mmcv"),
    "mmcv.ops": (None, "--no-build-isolation --no-cache-dir onedl-mmcv"),
    "mmdet": ("3.5.0", "onedl-mmdetection"),
    "mmpretrain": ("1.3.5", "onedl-mmpretrain"),
    # It reads transformers where that is installed, and version 5 has moved what it reads.
    "mmpretrain.models": (None, "'transformers<5'"),
    "pycocotools": (None, "pycocotools"),
    "faster_coco_eval": ("1.6.5", "faster-coco-eval"),
    "numba": ("0.60.0", "numba"),
    "rich": (None, "rich"),
}


def check_dependencies(required: Mapping[str, tuple[str | None, str]] = REQUIRED) -> None:
    """Imports the packages that everything else stands on and compares their versions.

    Raises:
        ImportError: One is missing, broken or too old; says what to install.
    """
    for name, (oldest, package) in required.items():
        try:
            module = import_module(name)
        except Exception as error:  # beside a package that it was not made for: of any kind
            raise ImportError(
                f"mal_mmdet needs {name}, which cannot be imported ({type(error).__name__}: "
                f"{error}); mend it with `pip install {package}`, or install everything with "
                "`bash tools/quickstart.sh`"
            ) from error
        if oldest is None:
            continue
        from mmengine.utils import digit_version

        if digit_version(module.__version__) < digit_version(oldest):
            raise ImportError(
                f"mal_mmdet needs {name} {oldest} or newer, but {module.__version__} is "
                f"installed; update it with `pip install --upgrade {package}`"
            )
