# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import torch
from mmdet.registry import MODELS
from torch import Tensor, nn

from .pixel_decoder import PixelDecoder


@MODELS.register_module()
class QueryDecoder(PixelDecoder):
    """Query-based decoder (paper, ablation of decoders): the key is a learned query.

    As in DETR, the query looks at the encoder's tokens by cross-attention; a crop holds one
    object, so there is one query. The paper reports that it fails under box supervision.

    Args:
        num_layers: Transformer layers that the query passes.
        num_heads: Attention heads; they divide ``channels``.

    Raises:
        ValueError: They do not.
    """

    def __init__(
        self,
        in_channels: int,
        channels: int = 256,
        num_layers: int = 2,
        num_heads: int = 8,
        **kwargs,
    ) -> None:
        super().__init__(in_channels, channels, **kwargs)
        if channels % num_heads:
            raise ValueError(
                f"channels is {channels}, but must be a multiple of num_heads={num_heads}"
            )
        self.query = nn.Parameter(torch.randn(1, 1, channels))
        self.token_projection = nn.Linear(in_channels, channels)
        layer = nn.TransformerDecoderLayer(
            channels, num_heads, 4 * channels, dropout=0.0, batch_first=True
        )
        self.layers = nn.TransformerDecoder(layer, num_layers)

    def keys(self, features: Tensor) -> Tensor:
        """What the query found in each crop: (B, C, h, w) → (B, D)."""
        tokens = self.token_projection(features.flatten(2).transpose(1, 2))
        return self.layers(self.query.expand(len(tokens), -1, -1), tokens)[:, 0]
