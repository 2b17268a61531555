# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from collections.abc import Sequence

import torch
from mmdet.registry import MODELS
from mmengine.model import BaseDataPreprocessor
from torch import Tensor


@MODELS.register_module()
class CropDataPreprocessor(BaseDataPreprocessor):
    """Batches, channel order and normalisation of crops, on the model's device.

    Args:
        mean: Per channel, on the 0 to 255 scale, in the order of the model's input.
        std: Likewise.
        bgr_to_rgb: Whether crops come as BGR, as mmcv reads them.
    """

    def __init__(
        self, mean: Sequence[float], std: Sequence[float], bgr_to_rgb: bool = True
    ) -> None:
        super().__init__(non_blocking=True)
        self.bgr_to_rgb = bgr_to_rgb
        self.register_buffer("mean", torch.tensor(mean).view(-1, 1, 1), False)
        self.register_buffer("std", torch.tensor(std).view(-1, 1, 1), False)

    def forward(self, data: dict, training: bool = False) -> dict:
        """Normalises a collated batch.

        Args:
            data: ``inputs`` and ``data_samples``; for training dicts, the inputs of the
                ``student`` and the ``teacher`` view with a list of uint8 crops (3, S, S) each, the
                samples of the ``student``; for prediction lists of one uint8 stack (N, 3, S, S)
                per image, or (N, V, 3, S, S) of V crops a box.
            training: Whether the batch is for training.

        Returns:
            ``inputs``: float crops, (B, 3, S, S) for each view in training, (ΣN, 3, S, S) or
            (ΣN, V, 3, S, S) for prediction. ``data_samples``: a list per crop in training, per
            image otherwise, on the CPU: nobody has to wait for a GPU to know what is to be done.
        """
        inputs, data_samples = self.cast_data(data["inputs"]), data["data_samples"]
        if training:
            views = {view: self._normalise(torch.stack(crops)) for view, crops in inputs.items()}
            return dict(inputs=views, data_samples=data_samples["student"])
        stacks = [crops for crops in inputs if len(crops)] or inputs[:1]
        return dict(inputs=self._normalise(torch.cat(stacks)), data_samples=data_samples)

    def _normalise(self, crops: Tensor) -> Tensor:
        if self.bgr_to_rgb:
            crops = crops.flip(-3)
        return torch.sub(crops, self.mean).div_(self.std)  # no float copy in between
