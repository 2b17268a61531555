# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from typing import Any

from mmdet.registry import MODELS
from mmpretrain.models import VisionTransformer
from torch import Tensor, nn


@MODELS.register_module()
class ConvStemVisionTransformer(VisionTransformer):
    """ViT whose patch projection is a small convolutional network, as in the authors' release.

    The stem has no pretrained weights: it is trained from scratch, also where ``frozen_stages``
    freezes the pretrained layers behind it.

    Args:
        img_size: Side of the crop in pixels, a multiple of 16; sets the grid of the position
            embedding.
        **kwargs: Of ``mmpretrain.VisionTransformer``, less ``patch_size`` and ``patch_cfg``.
    """

    def __init__(self, img_size: int = 224, **kwargs: Any) -> None:
        super().__init__(img_size=img_size, patch_size=ConvStem.stride, **kwargs)
        self.patch_embed = ConvStem(self.embed_dims, self.patch_resolution)


class ConvStem(nn.Module):
    """Four 3 × 3 convolutions of stride 2, and a 1 × 1 convolution.

    Args:
        embed_dims: Channels C of a token; the convolutions have C/8, C/4, C/2 and C.
        init_out_size: Token grid (h, w) that the position embedding is made for.
    """

    stride = 16

    def __init__(self, embed_dims: int, init_out_size: tuple[int, int]) -> None:
        super().__init__()
        self.init_out_size = init_out_size
        self.projection = nn.Sequential()
        in_channels = 3
        for divisor in (8, 4, 2, 1):
            channels = embed_dims // divisor
            self.projection.append(
                nn.Sequential(
                    nn.Conv2d(in_channels, channels, 3, stride=2, padding=1, bias=False),
                    nn.GroupNorm(1, channels, eps=1e-6),
                    nn.GELU(),
                )
            )
            in_channels = channels
        self.projection[-1].append(nn.Conv2d(embed_dims, embed_dims, 1))

    def forward(self, images: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """Tokens (B, h·w, C) and their grid (h, w) of images (B, 3, 16h, 16w)."""
        maps = self.projection(images)
        return maps.flatten(2).transpose(1, 2), tuple(maps.shape[2:])
