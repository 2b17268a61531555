# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import torch
from mmdet.registry import MODELS
from torch import Tensor, nn

from .pixel_decoder import PixelDecoder


@MODELS.register_module()
class FullyConvolutionalDecoder(PixelDecoder):
    """Fully convolutional decoder (paper, ablation of decoders): V alone, with one output channel.

    That last 1 × 1 convolution is one key that all crops share.
    """

    def __init__(self, in_channels: int, channels: int = 256, **kwargs) -> None:
        super().__init__(in_channels, channels, **kwargs)
        self.key = nn.Parameter(torch.empty(1, channels))
        nn.init.xavier_normal_(self.key)

    def keys(self, features: Tensor) -> Tensor:
        """The shared key: (B, C, h, w) → (B, D)."""
        return self.key.expand(len(features), -1)
