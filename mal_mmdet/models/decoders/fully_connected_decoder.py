# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from mmdet.registry import MODELS
from mmengine.model import BaseModule
from torch import Tensor, nn

from mal_mmdet.structures import resize_maps


@MODELS.register_module()
class FullyConnectedDecoder(BaseModule):
    """Fully connected decoder (paper, ablation of decoders): an MLP writes the flattened mask.

    Args:
        in_channels: Channels C of the encoder's feature map.
        channels: Width of the hidden layer.
        mask_size: Side of the mask that the last layer writes, in cells.
        init_cfg: Initialisation.
    """

    def __init__(
        self,
        in_channels: int,
        channels: int = 256,
        mask_size: int = 64,
        init_cfg: dict | None = None,
    ) -> None:
        super().__init__(init_cfg)
        self.in_channels = in_channels
        self.mask_size = mask_size
        self.mlp = nn.Sequential(
            nn.Linear(in_channels, channels), nn.ReLU(), nn.Linear(channels, mask_size**2)
        )

    def forward(self, features: Tensor, areas: Tensor) -> Tensor:
        """Mask logits of each crop.

        Args:
            features: The encoder's map, shape (B, C, h, w).
            areas: Not used: the mask has one resolution for all objects.

        Returns:
            Shape (B, 4h, 4w).
        """
        size = (4 * features.shape[2], 4 * features.shape[3])
        masks = self.mlp(features.mean((2, 3))).unflatten(1, (1, self.mask_size, self.mask_size))
        return resize_maps(masks, size)[:, 0]
