# SPDX-License-Identifier: Apache-2.0
from .attention_maps import attention_maps, draw_attention
from .label_sheet import draw_label_sheet
from .panels import arrange, crop_to_image, draw_panel
from .review_page import draw_thumbnail, write_page, write_review_page

__all__ = [
    "arrange",
    "attention_maps",
    "crop_to_image",
    "draw_attention",
    "draw_label_sheet",
    "draw_panel",
    "draw_thumbnail",
    "write_page",
    "write_review_page",
]
