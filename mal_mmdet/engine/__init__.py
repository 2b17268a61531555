# SPDX-License-Identifier: Apache-2.0
from .fsdp import ResumableFSDPStrategy, is_vit_layer, shard_networks_by_layer
from .label_progress_hook import LabelProgressHook
from .mask_visualization_hook import MaskVisualizationHook
from .mean_teacher_hook import MultiTensorMeanTeacherHook

__all__ = [
    "LabelProgressHook",
    "MaskVisualizationHook",
    "MultiTensorMeanTeacherHook",
    "ResumableFSDPStrategy",
    "is_vit_layer",
    "shard_networks_by_layer",
]
