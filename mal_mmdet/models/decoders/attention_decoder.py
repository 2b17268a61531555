# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from mmdet.registry import MODELS
from torch import Tensor, nn

from .pixel_decoder import PixelDecoder


@MODELS.register_module()
class AttentionDecoder(PixelDecoder):
    """Attention-based decoder ``D(E) = K(E) · V(E)``, the paper's choice (Sec. 3.3).

    K, the instance-aware head, pools the feature map to one vector per crop.
    """

    def __init__(self, in_channels: int, channels: int = 256, **kwargs) -> None:
        super().__init__(in_channels, channels, **kwargs)
        self.instance_head = nn.Sequential(
            nn.Linear(in_channels, channels), nn.ReLU(), nn.Linear(channels, channels)
        )

    def keys(self, features: Tensor) -> Tensor:
        """K of the pooled map: (B, C, h, w) → (B, D)."""
        return self.instance_head(features.mean((2, 3)))
