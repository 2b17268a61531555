# SPDX-License-Identifier: Apache-2.0
from .fsdp import ResumableFSDPStrategy, is_vit_layer, shard_networks_by_layer
from .mask_visualization_hook import MaskVisualizationHook
from .progress_hook import LabelProgressHook, ProgressHook
from .readable_visualization_hook import ReadableVisualizationHook

__all__ = [
    "LabelProgressHook",
    "MaskVisualizationHook",
    "ProgressHook",
    "ReadableVisualizationHook",
    "ResumableFSDPStrategy",
    "is_vit_layer",
    "shard_networks_by_layer",
]
