# SPDX-License-Identifier: Apache-2.0
"""Mean IoU of predicted masks against human ones, on the full image, box by box."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from mmdet.registry import METRICS
from mmengine.evaluator import BaseMetric
from pycocotools import mask as mask_utils

from mal_mmdet.labeling import encode_mask, read_coco
from mal_mmdet.structures import AREA_LIMITS


def to_rle(segmentation: dict | list, image: dict) -> dict:
    """Any COCO segmentation (polygons, compressed or plain RLE) as compressed RLE."""
    height, width = image["height"], image["width"]
    if isinstance(segmentation, list):
        return mask_utils.merge(mask_utils.frPyObjects(segmentation, height, width))
    if isinstance(segmentation["counts"], list):
        return mask_utils.frPyObjects(segmentation, height, width)
    return segmentation


def mean_ious(ious: np.ndarray, categories: np.ndarray, areas: np.ndarray) -> dict[str, float]:
    """Means over instances, over categories, and by size of the box.

    Args:
        ious: IoU of each instance, shape (N,), in [0, 1].
        categories: Category of each instance, shape (N,).
        areas: Box area of each instance in px², shape (N,).

    Returns:
        ``miou`` over instances; ``miou_category``, averaged within each category and then over
        the categories that have objects (the paper's figure); ``miou_small``, ``miou_medium``
        and ``miou_large`` over the instances of a size, NaN where there are none; and the
        number of instances in ``num`` and ``num_<size>``.
    """
    sizes = np.searchsorted(AREA_LIMITS, areas)

    def mean(values: np.ndarray) -> float:
        return float(values.mean()) if len(values) else float("nan")

    by_category = np.array([mean(ious[categories == c]) for c in np.unique(categories)])
    result = dict(miou=mean(ious), miou_category=mean(by_category), num=len(ious))
    for i, size in enumerate(("small", "medium", "large")):
        result[f"miou_{size}"] = mean(ious[sizes == i])
        result[f"num_{size}"] = int((sizes == i).sum())
    return result


def evaluate_masks(masks: dict, truth: dict) -> dict[str, float]:
    """Compares masks with the human masks of a COCO file.

    Args:
        masks: Annotation id → segmentation. An annotation of ``truth`` without one counts as
            IoU 0.
        truth: COCO file with human masks. Crowd annotations are not compared.

    Returns:
        As :func:`mean_ious`, and ``num_missing``.
    """
    images = {image["id"]: image for image in truth["images"]}
    ious, categories, areas = [], [], []
    missing = 0
    for ann in truth["annotations"]:
        if ann.get("iscrowd"):
            continue
        if not ann.get("segmentation"):
            raise ValueError(f"annotation {ann['id']} of the ground truth has no mask")
        image = images[ann["image_id"]]
        iou = 0.0
        if masks.get(ann["id"]):
            pair = [to_rle(masks[ann["id"]], image)], [to_rle(ann["segmentation"], image)]
            if pair[0][0]["size"] != pair[1][0]["size"]:
                raise ValueError(
                    f"the masks of annotation {ann['id']} have different sizes: predicted "
                    f"{pair[0][0]['size']}, human {pair[1][0]['size']} (height, width)"
                )
            iou = float(mask_utils.iou(*pair, [0])[0, 0])
        else:
            missing += 1
        ious.append(iou)
        categories.append(ann["category_id"])
        areas.append(ann["bbox"][2] * ann["bbox"][3])
    result = mean_ious(np.array(ious), np.array(categories), np.array(areas))
    return result | dict(num_missing=missing)


def evaluate_label_files(pred_file: str | Path, truth_file: str | Path) -> dict[str, float]:
    """:func:`evaluate_masks` of a label file, matched by annotation id."""
    pred = read_coco(pred_file)["annotations"]
    masks = {ann["id"]: ann.get("segmentation") for ann in pred}
    return evaluate_masks(masks, read_coco(truth_file))


@METRICS.register_module()
class MaskIoUMetric(BaseMetric):
    """Mean IoU of the masks that a runner's validation or test loop predicts for boxes.

    Args:
        ann_file: COCO file with human masks for the same annotation ids.
    """

    default_prefix = "mask"

    def __init__(self, ann_file: str, **kwargs) -> None:
        super().__init__(**kwargs)
        self.ann_file = ann_file

    def process(self, data_batch: dict, data_samples: Sequence[dict]) -> None:
        """Encodes the masks of each image at once, so that only RLEs are held."""
        for sample in data_samples:
            pred = sample["pred_instances"]
            if "ann_ids" not in pred:
                raise ValueError("MaskIoUMetric needs annotation ids: use CocoBoxDataset")
            rles = [encode_mask(mask) for mask in pred["masks"].cpu().numpy()]
            self.results.append(dict(zip(pred["ann_ids"], rles)))

    def compute_metrics(self, results: list[dict]) -> dict[str, float]:
        """See :func:`evaluate_masks`."""
        masks = {ann_id: rle for result in results for ann_id, rle in result.items()}
        return evaluate_masks(masks, read_coco(self.ann_file))
