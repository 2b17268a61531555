# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from mmdet.models.losses.dice_loss import dice_loss
from mmdet.registry import MODELS
from torch import Tensor, nn


@MODELS.register_module()
class MILLoss(nn.Module):
    """Multiple-instance loss: every row and column of a crop is a bag (paper, Sec. 3.4).

    A row that meets the box holds at least one foreground pixel, one that does not holds
    none; so the row-wise and column-wise maxima of mask and box have to agree.

    Args:
        loss_weight: Weight α of this loss.
        warmup_iters: Iterations of the first epoch over which the weight rises from 0.
    """

    def __init__(self, loss_weight: float = 4.0, warmup_iters: int = 1000) -> None:
        super().__init__()
        self.loss_weight = loss_weight
        self.warmup_iters = warmup_iters

    def forward(self, probs: Tensor, box_masks: Tensor) -> Tensor:
        """The weighted loss, averaged over the batch.

        Args:
            probs: Mask probabilities of the student, shape (B, h, w).
            box_masks: Box masks t at mask resolution, shape (B, h, w).
        """
        rows = dice_loss(probs.amax(2), box_masks.amax(2))
        columns = dice_loss(probs.amax(1), box_masks.amax(1))
        return self.loss_weight * (rows + columns)
