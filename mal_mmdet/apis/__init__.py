# SPDX-License-Identifier: Apache-2.0
from .ablation import rebase, run_ablation
from .labeling import generate_labels
from .launch import add_runner_arguments, load_config

__all__ = ["add_runner_arguments", "generate_labels", "load_config", "rebase", "run_ablation"]
