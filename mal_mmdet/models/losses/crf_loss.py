# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import torch
from mmdet.models.losses.dice_loss import dice_loss
from mmdet.registry import MODELS
from torch import Tensor, nn

from .color_model import color_log_odds
from .mean_field import mean_field

EPS = 1e-4  # lets colours overrule a network, however sure it is


@MODELS.register_module()
class CRFLoss(nn.Module):
    """Pulls the student towards the mean-field mask of student and teacher (paper, Sec. 3.4).

    Args:
        loss_weight: Weight of this loss.
        warmup_iters: Iterations of the first epoch over which the weight rises from 0.
        zeta: Colour bandwidth ζ of the pairwise weights.
        omega: Strength ω of the pairwise weights (2 in the paper's text, 1 in its system).
        kernel_size: Side of the neighbourhood.
        num_steps: Mean-field steps.
        teacher_weight: Share of the teacher in the probabilities that the mean field refines;
            0 leaves the student alone (the paper's ablation of the teacher).
        color_weight: Factor of :func:`color_log_odds`, which the mean field then starts from, too
            (0 in the paper).
    """

    def __init__(
        self,
        loss_weight: float = 0.5,
        warmup_iters: int = 4000,
        zeta: float = 0.1,
        omega: float = 1.0,
        kernel_size: int = 3,
        num_steps: int = 100,
        teacher_weight: float = 0.5,
        color_weight: float = 0.0,
    ) -> None:
        super().__init__()
        self.loss_weight = loss_weight
        self.warmup_iters = warmup_iters
        self.teacher_weight = teacher_weight
        self.color_weight = color_weight
        self.mean_field_cfg = dict(
            zeta=zeta, omega=omega, kernel_size=kernel_size, num_steps=num_steps
        )

    def forward(
        self, probs: Tensor, teacher_probs: Tensor, box_masks: Tensor, images: Tensor
    ) -> Tensor:
        """The weighted loss, averaged over the batch.

        Args:
            probs: Mask probabilities of the student, shape (B, h, w).
            teacher_probs: Those of the teacher, shape (B, h, w).
            box_masks: Box masks t at mask resolution, shape (B, h, w).
            images: Normalised student view at mask resolution, shape (B, 3, h, w).
        """
        average = torch.lerp(probs.detach(), teacher_probs, self.teacher_weight)
        if self.color_weight:
            odds = self.color_weight * color_log_odds(average * box_masks, images)
            average = (torch.logit(average, EPS) + odds).sigmoid()
        masks = mean_field(average, box_masks, images, **self.mean_field_cfg)
        return self.loss_weight * dice_loss(probs, masks)
