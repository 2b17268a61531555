# SPDX-License-Identifier: Apache-2.0
"""How well an encoder's features part objects from their background (paper, Sec. 4)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import torch
import torch.nn.functional as F
from mmdet.registry import METRICS
from mmengine.evaluator import BaseMetric
from pycocotools import mask as mask_utils
from torch import Tensor

from mal_mmdet.labeling import arrived, read_coco
from mal_mmdet.structures import mask_on_cells

from .mask_iou import human_rle


def clustering_score(features: Tensor, foreground: Tensor) -> float:
    """Clustering score of one crop; lower is better.

    Foreground and background have one centre each, the mean f' of their feature vectors. The
    score is the mean over all cells i of | f_i / |f_i| − f'_γ(i) / |f'_γ(i)| |², where γ(i) is
    the side of cell i.

    Args:
        features: Floating, shape (C, h, w).
        foreground: Bool, shape (h, w).

    Returns:
        In [0, 4].

    Raises:
        ValueError: Shapes do not fit, or one side has no cell.
    """
    if features.shape[1:] != foreground.shape:
        raise ValueError(
            f"features have the shape {tuple(features.shape)} and the foreground "
            f"{tuple(foreground.shape)}, expected (C, h, w) and (h, w)"
        )
    if foreground.all() or not foreground.any():
        raise ValueError("the clustering score needs cells of foreground and of background")
    distances = []
    for side in (foreground, ~foreground):
        vectors = features[:, side].double()
        centre = F.normalize(vectors.mean(1, keepdim=True), dim=0)
        distances.append((F.normalize(vectors, dim=0) - centre).square().sum(0))
    return float(torch.cat(distances).mean())


@METRICS.register_module()
class ClusteringScoreMetric(BaseMetric):
    """Mean clustering score of the encoder's features over the boxes of a test loop.

    Needs ``return_features`` of the model: any config of phase 1 is measured by
    ``tools/test.py CONFIG CHECKPOINT --cfg-options model.return_features=True
    test_evaluator.type=ClusteringScoreMetric``. Boxes whose human mask leaves no cell of the
    map to the foreground, or none to the background, have no score: they are not counted in
    ``score`` and ``num``, but in ``num_skipped``.

    Args:
        ann_file: COCO file with human masks for the same annotation ids.
    """

    default_prefix = "clustering"

    def __init__(self, ann_file: str, **kwargs) -> None:
        super().__init__(**kwargs)
        self.ann_file = ann_file

    @cached_property
    def _human_rles(self) -> dict:
        truth = read_coco(self.ann_file)
        images = {image["id"]: image for image in truth["images"]}
        return {
            ann["id"]: human_rle(ann, images[ann["image_id"]])
            for ann in truth["annotations"]
            if not ann.get("iscrowd")
        }

    def process(self, data_batch: dict, data_samples: Sequence[dict]) -> None:
        """Scores each box at once, so that no features are held.

        Raises:
            ValueError: Predictions hold no annotation ids or features, or an annotation has no
                human mask.
        """
        for sample in data_samples:
            pred = arrived(sample["pred_instances"])
            if "ann_ids" not in pred:
                raise ValueError("ClusteringScoreMetric needs annotation ids: use CocoBoxDataset")
            if pred["ann_ids"] and "features" not in pred:
                raise ValueError(
                    "ClusteringScoreMetric needs the encoder's features: set "
                    "model.return_features=True"
                )
            crops = sample["gt_instances"]["crop_bboxes"]
            boxes = zip(pred["ann_ids"], pred.get("features", []), crops)
            # One entry an image: MMEngine drops what goes beyond the number of samples.
            self.results.append([self._score(*box) for box in boxes])

    def _score(self, ann_id: int | str, features: Tensor, crop_bbox: Tensor) -> float | None:
        if ann_id not in self._human_rles:
            raise ValueError(f"annotation {ann_id} has no human mask in {self.ann_file}")
        mask = torch.from_numpy(mask_utils.decode(self._human_rles[ann_id])) > 0
        foreground = mask_on_cells(mask, crop_bbox, features.shape[1:])
        if foreground.all() or not foreground.any():
            return None
        return clustering_score(features, foreground)

    def compute_metrics(self, results: list[list[float | None]]) -> dict[str, float]:
        """``score``, NaN where no box has one; ``num`` and ``num_skipped`` boxes."""
        boxes = [score for image in results for score in image]
        scores = [score for score in boxes if score is not None]
        return dict(
            score=sum(scores) / len(scores) if scores else float("nan"),
            num=len(scores),
            num_skipped=len(boxes) - len(scores),
        )
