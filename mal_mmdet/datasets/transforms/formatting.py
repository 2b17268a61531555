# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import torch
from mmcv.transforms import BaseTransform
from mmdet.registry import TRANSFORMS
from mmdet.structures import DetDataSample
from mmengine.structures import InstanceData
from torch import Tensor


@TRANSFORMS.register_module()
class PackBoxCrop(BaseTransform):
    """Packs one crop for :class:`MaskAutoLabeler`.

    Adds ``inputs``, uint8 of shape (3, S, S), or (V, 3, S, S) where a box has V crops, and
    ``data_samples``, whose ``gt_instances`` holds one box: ``bboxes`` (1, 4) in the crop frame,
    ``ori_bboxes`` and ``crop_bboxes`` (1, 4) in the image frame, ``areas`` (1,) of the original
    box in image pixels, ``labels`` (1,), of V crops ``view_bboxes`` (1, V, 4) in the image frame,
    and ``ann_ids``, ``ann_indices`` and ``scores`` where the data set gives them. No masks.

    Args:
        with_box: Whether to add ``data_samples``. Views of a crop share their box, and each of its
            tensors that a worker hands over takes a tenth of a millisecond of both processes.
    """

    def __init__(self, with_box: bool = True) -> None:
        self.with_box = with_box

    def transform(self, results: dict) -> dict:
        inputs = _to_tensor(results["img"])
        if "other_views" in results:
            inputs = torch.stack([inputs, *map(_to_tensor, results["other_views"])])
        if not self.with_box:
            return dict(inputs=inputs)
        instances = InstanceData(
            bboxes=results["gt_bboxes"].tensor,
            ori_bboxes=torch.from_numpy(results["ori_bbox"])[None],
            crop_bboxes=torch.from_numpy(results["crop_bbox"])[None],
            areas=torch.tensor([results["area"]]),
            labels=torch.from_numpy(results["gt_bboxes_labels"]),
        )
        if "view_bboxes" in results:
            instances.view_bboxes = torch.from_numpy(results["view_bboxes"])[None]
        if "ann_id" in results:
            instances.ann_ids = [results["ann_id"]]
            instances.ann_indices = torch.tensor([results["ann_index"]])
        if "score" in results:
            instances.scores = torch.tensor([float(results["score"])])
        keys = ("img_id", "img_path", "ori_shape", "img_shape", "flip", "flip_direction")
        sample = DetDataSample(metainfo={key: results.get(key) for key in keys})
        sample.gt_instances = instances
        return dict(inputs=inputs, data_samples=sample)


def _to_tensor(img: np.ndarray) -> Tensor:
    return torch.from_numpy(np.stack(cv2.split(img)))


def no_crops(metainfo: dict[str, Any]) -> dict[str, Any]:
    """The sample of an image without a single box, with the fields of :class:`PackBoxCrop`."""
    sample = DetDataSample(metainfo=metainfo)
    fields = ("bboxes", "ori_bboxes", "crop_bboxes")
    sample.gt_instances = InstanceData(
        **{field: torch.empty(0, 4) for field in fields},
        areas=torch.empty(0),
        labels=torch.empty(0, dtype=torch.int64),
        ann_ids=[],
        ann_indices=torch.empty(0, dtype=torch.int64),
    )
    return dict(inputs=torch.empty(0, 3, 0, 0), data_samples=sample)
