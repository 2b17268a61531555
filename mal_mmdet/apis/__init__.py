# SPDX-License-Identifier: Apache-2.0
from .ablation import rebase, run_ablation
from .attention import draw_attention_maps
from .inferencer import MALInferencer
from .label_swap import check_labels, use_labels
from .labeling import generate_labels
from .launch import (
    add_runner_arguments,
    add_trust_argument,
    full_precision_without_gpu,
    latest_checkpoint,
    load_config,
    load_weights,
    read_config,
    readable_errors,
    refuse_sharded_validation,
    resume_latest,
    set_launcher,
    set_local_rank,
    use_boxes,
    use_detections,
    use_one_crop,
    use_safe_checkpoints,
    use_windows,
)
from .retention import Row, measure_retention

__all__ = [
    "MALInferencer",
    "Row",
    "add_runner_arguments",
    "add_trust_argument",
    "check_labels",
    "draw_attention_maps",
    "full_precision_without_gpu",
    "generate_labels",
    "latest_checkpoint",
    "load_config",
    "load_weights",
    "measure_retention",
    "read_config",
    "readable_errors",
    "rebase",
    "refuse_sharded_validation",
    "resume_latest",
    "run_ablation",
    "set_launcher",
    "set_local_rank",
    "use_boxes",
    "use_detections",
    "use_labels",
    "use_one_crop",
    "use_safe_checkpoints",
    "use_windows",
]
