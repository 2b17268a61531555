#!/usr/bin/env python
# SPDX-License-Identifier: Apache-2.0
"""Trains a config's student on human masks: what its network, data and schedule could reach.

How far labels from boxes fall short of that is what boxes cost; the rest is the network's doing, or
the data's. Everything but the losses is the config's. tools/generate_labels.py then labels with the
config itself and a checkpoint of this training. It is no part of the package, in which nothing that
trains can see a mask.
"""

from __future__ import annotations

import argparse

import numpy as np
import torch
import torch.nn.functional as F
from mmdet.models.losses.dice_loss import dice_loss
from mmdet.registry import MODELS, RUNNERS
from mmdet.structures import DetDataSample
from pycocotools.coco import COCO
from torch import Tensor

from mal_mmdet.apis import (
    add_runner_arguments,
    full_precision_without_gpu,
    load_config,
    readable_errors,
    use_safe_checkpoints,
)
from mal_mmdet.checkpoints import trusting_checkpoints
from mal_mmdet.engine import ProgressHook
from mal_mmdet.models import MaskAutoLabeler


@MODELS.register_module()
class SupervisedLabeler(MaskAutoLabeler):
    """A labeler that learns from masks: dice loss and cross-entropy, of equal weight.

    Args:
        masks: COCO file with a mask for the id of every box that is trained on.
        **kwargs: Of the :class:`MaskAutoLabeler`.
    """

    def __init__(self, masks: str, **kwargs) -> None:
        super().__init__(**kwargs)
        self.coco = COCO(masks)

    def loss(
        self, inputs: dict[str, Tensor], data_samples: list[DetDataSample]
    ) -> dict[str, Tensor]:
        """``loss_dice`` and ``loss_bce`` of a batch of crops, see :class:`MaskAutoLabeler`.

        Raises:
            ValueError: A box has no mask.
        """
        instances = [sample.gt_instances for sample in data_samples]
        logits = self.student(inputs["student"], torch.cat([i.areas for i in instances])).float()
        targets = []
        for boxes, sample in zip(instances, data_samples):
            ann = self.coco.anns.get(boxes.ann_ids[0], {})
            if not ann.get("segmentation"):
                raise ValueError(
                    f"annotation {boxes.ann_ids[0]} is trained on, but has no mask in the file of "
                    "masks: give the file that the config's boxes were taken from"
                )
            mask = self.coco.annToMask(ann)
            target = crop_mask(mask, boxes.crop_bboxes[0].tolist(), logits.shape[-1])
            targets.append(target.flip(1) if sample.flip else target)
        target = torch.stack(targets).to(logits.device)
        return dict(
            loss_dice=dice_loss(logits.sigmoid(), target),
            loss_bce=F.binary_cross_entropy_with_logits(logits, target),
        )


def crop_mask(mask: np.ndarray, crop_bbox: list[int], size: int) -> Tensor:
    """How much of each cell of a crop a mask covers, about: cells see a little of their neighbours.

    Args:
        mask: uint8, (H, W), 0 or 1; nothing is foreground outside.
        crop_bbox: (x0, y0, x1, y1), image frame, may reach beyond the image.
        size: Cells a side.

    Returns:
        float32, (size, size), resized as an antialiased image would be.
    """
    x0, y0, x1, y1 = crop_bbox
    height, width = mask.shape
    crop = np.zeros((y1 - y0, x1 - x0), dtype=np.float32)
    top, left, bottom, right = max(y0, 0), max(x0, 0), min(y1, height), min(x1, width)
    crop[top - y0 : bottom - y0, left - x0 : right - x0] = mask[top:bottom, left:right]
    crop = torch.from_numpy(crop)[None, None]
    return F.interpolate(crop, (size, size), mode="bilinear", antialias=True)[0, 0]


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("config", help="config of a MaskAutoLabeler")
    parser.add_argument("masks", help="COCO file with the human masks of the config's boxes")
    add_runner_arguments(parser)
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    cfg = load_config(args)
    cfg.model.update(type="SupervisedLabeler", masks=args.masks)
    full_precision_without_gpu(cfg)
    use_safe_checkpoints(cfg)
    with trusting_checkpoints(args.trust_checkpoint):
        runner = RUNNERS.build(cfg)
        runner.register_hook(ProgressHook())
        runner.train()


if __name__ == "__main__":
    with readable_errors():
        main()
