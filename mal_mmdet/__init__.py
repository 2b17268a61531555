# SPDX-License-Identifier: Apache-2.0
"""Mask Auto-Labeler as an OpenMMLab plugin; importing it registers everything."""

from .dependencies import check_dependencies
from .version import __version__

check_dependencies()

from . import datasets, engine, evaluation, labeling, models  # noqa: E402

__all__ = ["__version__", "datasets", "engine", "evaluation", "labeling", "models"]
