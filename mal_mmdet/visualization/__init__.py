# SPDX-License-Identifier: Apache-2.0
from .label_sheet import draw_label_sheet

__all__ = ["draw_label_sheet"]
