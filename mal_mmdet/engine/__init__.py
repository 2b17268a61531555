# SPDX-License-Identifier: Apache-2.0
from .fsdp import ResumableFSDPStrategy, is_vit_layer, shard_networks_by_layer
from .label_progress_hook import LabelProgressHook
from .mask_visualization_hook import MaskVisualizationHook

__all__ = [
    "LabelProgressHook",
    "MaskVisualizationHook",
    "ResumableFSDPStrategy",
    "is_vit_layer",
    "shard_networks_by_layer",
]
