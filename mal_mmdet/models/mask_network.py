# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from mmdet.registry import MODELS
from mmengine.model import BaseModule
from torch import Tensor


@MODELS.register_module()
class MaskNetwork(BaseModule):
    """One network of MAL: image encoder and mask decoder.

    Args:
        backbone: Config of any registered backbone whose last output is a feature map.
        decoder: Config of a mask decoder.
        init_cfg: Initialisation.
    """

    def __init__(self, backbone: dict, decoder: dict, init_cfg: dict | None = None) -> None:
        super().__init__(init_cfg)
        self.backbone = MODELS.build(backbone)
        self.decoder = MODELS.build(decoder)

    def forward(self, images: Tensor, areas: Tensor) -> Tensor:
        """Mask logits of each crop.

        Args:
            images: Normalised crops, shape (B, 3, S, S).
            areas: Areas of the original boxes in image pixels, shape (B,).

        Returns:
            Shape (B, 4h, 4w) for an encoder map of h × w.
        """
        return self.decoder(self.backbone(images)[-1], areas)
