# SPDX-License-Identifier: Apache-2.0
from .fsdp import ResumableFSDPStrategy, is_vit_layer, shard_networks_by_layer
from .label_stop_hook import LabelStopHook
from .loss_check_hook import LossCheckHook
from .mask_visualization_hook import MaskVisualizationHook
from .mean_teacher_hook import MultiTensorMeanTeacherHook
from .progress_hook import LabelProgressHook, ProgressHook
from .readable_visualization_hook import ReadableVisualizationHook
from .safe_checkpoint_hook import INTERRUPTED, AtomicBackend, SafeCheckpointHook
from .signals import StopSignals, stop_signals

__all__ = [
    "INTERRUPTED",
    "AtomicBackend",
    "LabelProgressHook",
    "LabelStopHook",
    "LossCheckHook",
    "MaskVisualizationHook",
    "MultiTensorMeanTeacherHook",
    "ProgressHook",
    "ReadableVisualizationHook",
    "ResumableFSDPStrategy",
    "SafeCheckpointHook",
    "StopSignals",
    "is_vit_layer",
    "shard_networks_by_layer",
    "stop_signals",
]
