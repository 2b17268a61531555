# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from abc import ABCMeta, abstractmethod

import torch
from mmcv.cnn import ConvModule
from mmengine.model import BaseModule
from torch import Tensor, nn

from mal_mmdet.structures import AREA_LIMITS, resize_maps

SCALES = (0.5, 1.0, 2.0)  # of the feature map, for small, medium and large objects


class PixelDecoder(BaseModule, metaclass=ABCMeta):
    """A decoder whose mask logit is the inner product of a key K and a pixel's values V.

    V comes from the pixel-wise head here; where K comes from is what its subclasses differ in.

    Args:
        in_channels: Channels C of the encoder's feature map.
        channels: Width D of both heads.
        scale_adaptive: Whether V sees the map resized by the object's size.
        init_cfg: Initialisation; Kaiming for the convolutions by default.
    """

    def __init__(
        self,
        in_channels: int,
        channels: int = 256,
        scale_adaptive: bool = True,
        init_cfg: dict | None = None,
    ) -> None:
        super().__init__(init_cfg or dict(type="Kaiming", layer="Conv2d"))
        self.in_channels = in_channels
        self.scale_adaptive = scale_adaptive
        # ReLU closes every convolution, the last one too: V ≥ 0, the sign is K's.
        self.pixel_head = nn.ModuleList(
            ConvModule(in_channels if i == 0 else channels, channels, 3, padding=1)
            for i in range(4)
        )

    @abstractmethod
    def keys(self, features: Tensor) -> Tensor:
        """The key of each crop: (B, C, h, w) → (B, D)."""

    def forward(self, features: Tensor, areas: Tensor) -> Tensor:
        """Mask logits of each crop.

        Args:
            features: The encoder's map, shape (B, C, h, w).
            areas: Areas of the original boxes in image pixels, shape (B,).

        Returns:
            Shape (B, 4h, 4w).
        """
        return self._logits_by_size(self.keys(features), features, areas)

    def predict(self, features: Tensor, areas: Tensor) -> Tensor:
        """:meth:`forward`, where on a CPU no bit of a crop's logits depends on its neighbours.

        A key is a row of a matrix product, in which few rows are summed otherwise than many: keys
        are made one by one. Of convolutions PyTorch only treats a lone map otherwise: it gets a
        copy for company.
        """
        keys = torch.cat([self.keys(crop) for crop in features.split(1)])
        return self._logits_by_size(keys, features, areas, fewest=2)

    def _logits_by_size(
        self, keys: Tensor, features: Tensor, areas: Tensor, fewest: int = 1
    ) -> Tensor:
        """Logits from maps at the scale of each object's size, ``fewest`` maps at a time."""
        size = (4 * features.shape[2], 4 * features.shape[3])
        if not self.scale_adaptive:
            areas = torch.full_like(areas, AREA_LIMITS[-1])  # medium objects: maps as they are
        groups = torch.bucketize(areas, areas.new_tensor(AREA_LIMITS))
        logits = None
        for group, scale in enumerate(SCALES):
            # Areas are on the CPU, since how many there are of a size a GPU would be waited for.
            chosen = (groups == group).nonzero().squeeze(1)
            if len(chosen) == 0:
                continue
            if len(chosen) < fewest:
                chosen = chosen.repeat(fewest)
            chosen = chosen.to(features.device, non_blocking=True)
            # index_select would lose the layout, channels last, in which convolutions are fastest.
            part = self._logits(keys[chosen], resize(features[chosen], scale), size)
            if logits is None:
                logits = part.new_zeros(len(areas), *size)
            logits = logits.index_copy(0, chosen, part)
        return logits

    def _logits(self, keys: Tensor, features: Tensor, size: tuple[int, int]) -> Tensor:
        values = features
        for i, conv in enumerate(self.pixel_head):
            values = conv(resize(values, 2.0) if i == 3 else values)
        logits = torch.einsum("bc,bchw->bhw", keys, values)
        return resize_maps(logits[:, None], size)[:, 0]


def resize(maps: Tensor, scale: float) -> Tensor:
    """Bilinear resize of (B, C, h, w) maps by a factor; a side never falls under one cell."""
    height, width = (max(round(side * scale), 1) for side in maps.shape[2:])
    return resize_maps(maps, (height, width))
