# SPDX-License-Identifier: Apache-2.0
"""Mask Auto-Labeler as an OpenMMLab plugin; importing it registers everything."""

from .dependencies import check_dependencies
from .version import __version__

check_dependencies()

from mmengine.config.utils import MODULE2PACKAGE  # noqa: E402

# MMEngine then finds this package's configs and models: `mal_mmdet::mal/...`, `list_models`.
MODULE2PACKAGE["mal_mmdet"] = "mal_mmdet"

from . import checkpoints, datasets, engine, evaluation, labeling, models  # noqa: E402

__all__ = ["__version__", "checkpoints", "datasets", "engine", "evaluation", "labeling", "models"]
