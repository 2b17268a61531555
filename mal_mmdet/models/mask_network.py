# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import torch
from mmdet.registry import MODELS
from mmengine.model import BaseModule
from torch import Tensor

from . import decoders
from .backbones.conv_stem_vit import ConvStem

STRIDES = (16, 8, 4, 32)  # usual ones of encoders without patches


@MODELS.register_module()
class MaskNetwork(BaseModule):
    """One network of MAL: image encoder and mask decoder.

    Args:
        backbone: Config of any registered backbone whose last output is a feature map.
        decoder: Config of a mask decoder.
        channels_last: Whether crops reach the encoder in this memory layout. Encoders of many small
            convolutions, above all depthwise ones, then take as little as half the time on CPUs.
        init_cfg: Initialisation, such as a :class:`PretrainedEncoder`.

    Raises:
        ValueError: The decoder's type is not registered.
    """

    def __init__(
        self,
        backbone: dict,
        decoder: dict,
        channels_last: bool = False,
        init_cfg: dict | None = None,
    ) -> None:
        super().__init__(init_cfg)
        kind = decoder.get("type")
        if isinstance(kind, str) and MODELS.get(kind) is None:
            raise ValueError(
                f"model.network.decoder.type is {kind!r}, but must be one of "
                f"{', '.join(decoders.__all__)}, or another module registered in MODELS"
            )
        self.backbone = MODELS.build(backbone)
        self.decoder = MODELS.build(decoder)
        self.channels_last = channels_last

    def forward(self, images: Tensor, areas: Tensor) -> Tensor:
        """Mask logits of each crop.

        Args:
            images: Normalised crops, shape (B, 3, S, S).
            areas: Areas of the original boxes in image pixels, shape (B,), on the CPU.

        Returns:
            Shape (B, 4h, 4w) for an encoder map of h × w.

        Raises:
            ValueError: The decoder cannot use the encoder's map, or its cells do not divide the
                crop evenly.
        """
        return self.decoder(self._features(images), areas)

    def predict(self, images: Tensor, areas: Tensor) -> Tensor:
        """:meth:`forward`, where on a CPU no bit of a crop's logits depends on its neighbours.

        Libraries choose how to sum by the shape of a batch. An encoder's products have rows enough
        not to notice; a decoder has a ``predict`` of its own, or gets the crops one by one. On a
        GPU, where that would be slow, bits depend on the batch.
        """
        features = self._features(images)
        if features.device.type != "cpu":
            return self.decoder(features, areas)
        if hasattr(self.decoder, "predict"):
            return self.decoder.predict(features, areas)
        return torch.cat([self.decoder(*crop) for crop in zip(features.split(1), areas.split(1))])

    def _features(self, images: Tensor) -> Tensor:
        if self.channels_last:
            images = images.contiguous(memory_format=torch.channels_last)
        features = self.backbone(images)[-1]
        self._check(features, images)
        return features

    def _patch_size(self) -> int:
        """Side of a patch of a ViT, stride of a timm model; 1 if the encoder does not tell."""
        feature_info = getattr(getattr(self.backbone, "timm_model", None), "feature_info", None)
        if hasattr(feature_info, "reduction"):
            return feature_info.reduction()[-1]
        patch_embed = getattr(self.backbone, "patch_embed", None)
        if isinstance(patch_embed, ConvStem):
            return patch_embed.stride
        stride = getattr(getattr(patch_embed, "projection", None), "stride", 1)
        return stride if isinstance(stride, int) else stride[0]

    def _check(self, features: Tensor, images: Tensor) -> None:
        channels = self.decoder.in_channels
        if features.ndim != 4 or features.shape[1] != channels:
            raise ValueError(
                f"model.network.decoder.in_channels is {channels} and asks for a map of shape "
                f"(B, {channels}, h, w), but model.network.backbone, a "
                f"{type(self.backbone).__name__}, gives {tuple(features.shape)}: set in_channels "
                "to its channels, and for a ViT of mmpretrain out_type='featmap'"
            )
        size, cells = images.shape[-1], features.shape[-1]
        patch = self._patch_size()
        strides = [patch * 2**k for k in range(4)] if patch > 1 else STRIDES
        # Those by which the encoder has padded the crop or cut it off to get so many cells.
        fits = [p for p in strides if size % p and size > p and cells in (size // p, -(-size // p))]
        if size % cells or size % patch or fits:
            raise ValueError(
                f"CropBBox.size is {size} in the pipelines, but must be a multiple of the "
                "encoder's stride (for a ViT model.network.backbone.patch_size)"
                + "".join(f", {p}: {size // p * p} or {-(-size // p) * p}" for p in fits[:1])
            )
