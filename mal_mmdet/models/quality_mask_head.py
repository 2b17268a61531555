# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import torch
import torch.nn.functional as F
from mmdet.models.losses import CrossEntropyLoss
from mmdet.models.roi_heads.mask_heads import FCNMaskHead
from mmdet.models.task_modules.samplers import SamplingResult
from mmdet.registry import MODELS
from mmengine.config import ConfigDict
from mmengine.structures import InstanceData
from torch import Tensor

EPS = 1e-6
"""The least quality above 0, see :class:`LoadMaskQuality`."""


@MODELS.register_module()
class QualityMaskHead(FCNMaskHead):
    """An ``FCNMaskHead`` that learns less, or nothing, from masks of low quality.

    Boxes and classes of these objects are learned like any other. Where all weights are equal,
    the loss is the parent's.

    Args:
        min_quality: Masks with a lower quality take no part in the loss.
        weighted: Whether the other masks weigh as much as their quality, instead of 1.

    Raises:
        ValueError: ``min_quality`` is not in [0, 1], or ``loss_mask`` is not the cross entropy of
            masks without weights of classes.
    """

    def __init__(self, *args, min_quality: float = 0.0, weighted: bool = True, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        if not 0 <= min_quality <= 1:
            raise ValueError(f"min_quality is {min_quality}; expected a number from 0 to 1")
        loss = self.loss_mask
        if type(loss) is not CrossEntropyLoss or not loss.use_mask or loss.class_weight is not None:
            raise ValueError(
                f"loss_mask is {loss}; only CrossEntropyLoss with use_mask=True and without "
                "class_weight can be weighted by quality"
            )
        self.min_quality = min_quality
        self.weighted = weighted

    def loss_and_target(
        self,
        mask_preds: Tensor,
        sampling_results: list[SamplingResult],
        batch_gt_instances: list[InstanceData],
        rcnn_train_cfg: ConfigDict,
    ) -> dict:
        """The loss of R positive RoIs.

        Args:
            mask_preds: Logits, (R, C, h, w), C being 1 if ``class_agnostic``.
            sampling_results: Of each image, which RoIs have which ground truth.
            batch_gt_instances: Of each image with N objects, ``masks`` and ``mask_qualities``,
                float (N,), in [0, 1].
            rcnn_train_cfg: Its ``mask_size`` is (h, w).

        Returns:
            ``loss_mask``, a dict of the scalar loss ``loss_mask``, and ``mask_targets``, (R, h, w).

        Raises:
            ValueError: ``mask_qualities`` are missing.
        """
        if not all("mask_qualities" in gt for gt in batch_gt_instances):
            raise ValueError(
                "gt_instances have no mask_qualities: QualityMaskHead needs MaskQualityDataset, "
                "and LoadMaskQuality and UnpackMaskQuality in its pipeline, as in "
                "configs/mask_rcnn/mask-rcnn_r50_fpn_1x_coco-mal-quality-weighted.py"
            )
        targets = self.get_targets(sampling_results, batch_gt_instances, rcnn_train_cfg)
        labels = torch.cat([res.pos_gt_labels for res in sampling_results])
        if self.class_agnostic:
            labels = torch.zeros_like(labels)
        pairs = zip(batch_gt_instances, sampling_results)
        qualities = torch.cat([gt.mask_qualities[res.pos_assigned_gt_inds] for gt, res in pairs])
        weights = quality_weights(qualities, self.min_quality, self.weighted)
        loss = self.loss_mask.loss_weight * weighted_mask_loss(mask_preds, targets, labels, weights)
        return dict(loss_mask=dict(loss_mask=loss), mask_targets=targets)


def quality_weights(qualities: Tensor, min_quality: float, weighted: bool) -> Tensor:
    """What masks of these qualities weigh: 0 below ``min_quality``, else the quality or 1.

    Args:
        qualities: float32, (R,), in [0, 1].

    Returns:
        float32, (R,), in [0, 1].
    """
    weights = qualities if weighted else torch.ones_like(qualities)
    return weights * (qualities >= min_quality)


def weighted_mask_loss(
    mask_preds: Tensor, targets: Tensor, labels: Tensor, weights: Tensor
) -> Tensor:
    """Weighted mean over RoIs of the binary cross entropy of each one's class.

    Without RoIs, or with weights of 0 alone, it is 0 and still leads back to ``mask_preds``:
    distributed training waits for the gradient of every weight of the network.

    Args:
        mask_preds: Logits, (R, C, h, w).
        targets: (R, h, w), in [0, 1].
        labels: Which of the C masks counts, int64, (R,).
        weights: Not negative, (R,).

    Returns:
        Scalar.
    """
    rois = torch.arange(len(mask_preds), device=mask_preds.device)
    losses = F.binary_cross_entropy_with_logits(mask_preds[rois, labels], targets, reduction="none")
    total = weights.sum().clamp(min=EPS) * losses.shape[1:].numel()
    return (losses * weights[:, None, None]).sum() / total
