# SPDX-License-Identifier: Apache-2.0
from .label_progress_hook import LabelProgressHook

__all__ = ["LabelProgressHook"]
