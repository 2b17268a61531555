# SPDX-License-Identifier: Apache-2.0
from .label_progress_hook import LabelProgressHook
from .mask_visualization_hook import MaskVisualizationHook

__all__ = ["LabelProgressHook", "MaskVisualizationHook"]
