# SPDX-License-Identifier: Apache-2.0
"""Mean IoU of predicted masks against human ones, on the full image (paper, Sec. 4)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from mmdet.registry import METRICS
from mmdet.structures.bbox import bbox_overlaps
from mmengine.evaluator import BaseMetric
from pycocotools import mask as mask_utils
from torchvision.ops import box_convert

from mal_mmdet.labeling import (
    encode_mask,
    encode_window,
    find_problems,
    image_file,
    image_problem,
    is_about_box,
    is_bbox,
    mask_problem,
    mask_windows,
    read_coco,
    refuse_problems,
    to_rle,
)
from mal_mmdet.progress import track
from mal_mmdet.structures import AREA_LIMITS

from .boundary_iou import boundary_iou
from .category_groups import resolve_groups

SAME_BOX = 0.5  # median IoU; detected or redrawn boxes of the same objects lie above


def human_rle(ann: dict, image: dict) -> dict:
    """The mask of an annotation of the ground truth as compressed RLE.

    Raises:
        ValueError: It has none, or one that cannot be read.
    """
    if not ann.get("segmentation"):
        raise ValueError(f"annotation {ann['id']} of the ground truth has no mask")
    return _readable_rle(ann["segmentation"], ann, image)


def _readable_rle(segmentation: dict | list, ann: dict, image: dict) -> dict:
    if problem := mask_problem(segmentation, image):
        raise ValueError(f"annotation {ann['id']!r:.40}: {problem}")
    return to_rle(segmentation, image["height"], image["width"])


def paired_rles(
    segmentation: dict | list | None, ann: dict, image: dict
) -> tuple[dict | None, dict]:
    """A predicted mask, or None, and the human mask of an annotation as compressed RLE.

    Raises:
        ValueError: The human mask is missing, or one of the two cannot be read or is not of the
            size of the image.
    """
    human = human_rle(ann, image)
    return (_readable_rle(segmentation, ann, image) if segmentation else None), human


def paired_iou(segmentation: dict | list | None, ann: dict, image: dict) -> float:
    """IoU of a predicted mask with the human mask of an annotation; 0 where there is none.

    Raises:
        ValueError: As :func:`paired_rles`.
    """
    pred, human = paired_rles(segmentation, ann, image)
    return 0.0 if pred is None else float(mask_utils.iou([pred], [human], [0])[0, 0])


def mean_ious(
    ious: np.ndarray,
    categories: np.ndarray,
    areas: np.ndarray,
    classwise: bool = False,
    groups: Mapping[str, Sequence[str]] | None = None,
) -> dict[str, float]:
    """Means over instances, over categories, by size of the box, category and group.

    Args:
        ious: IoU of each instance, shape (N,), in [0, 1].
        categories: Category of each instance, shape (N,).
        areas: Box area of each instance in px², shape (N,).
        classwise: Whether to return each category's figure.
        groups: Groups of categories with a figure of their own, see :func:`resolve_groups`.

    Returns:
        ``miou`` over instances; ``miou_category``, averaged within each category and then over
        the categories that have objects (the paper's figure); ``miou_small``, ``miou_medium``
        and ``miou_large`` over the instances of a size; where asked for,
        ``miou_category/<name>`` of the categories that have objects and ``miou_group/<name>``,
        averaged within each category of the group and then over those that have objects (the
        paper's figure for a group). NaN where there are no instances. Each key that begins with
        ``miou`` but ``miou_category`` has its number of instances under ``num``.
    """
    sizes = np.searchsorted(AREA_LIMITS, areas)

    def mean(values: np.ndarray) -> float:
        return float(np.mean(values)) if len(values) else float("nan")

    names = np.unique(categories).tolist()
    by_category = {name: mean(ious[categories == name]) for name in names}
    result = dict(miou=mean(ious), miou_category=mean([*by_category.values()]), num=len(ious))
    for i, size in enumerate(("small", "medium", "large")):
        result[f"miou_{size}"] = mean(ious[sizes == i])
        result[f"num_{size}"] = int((sizes == i).sum())
    for name, members in (groups or {}).items():
        figures = [by_category[member] for member in set(members) & set(names)]
        result[f"miou_group/{name}"] = mean(figures)
        result[f"num_group/{name}"] = int(np.isin(categories, members).sum())
    for name in names if classwise else []:
        result[f"miou_category/{name}"] = by_category[name]
        result[f"num_category/{name}"] = int((categories == name).sum())
    return result


def evaluate_masks(
    masks: dict,
    truth: dict,
    classwise: bool = False,
    groups: str | Mapping[str, Sequence[str]] | None = None,
    boundary: bool = False,
) -> dict[str, float]:
    """Compares masks with the human masks of a COCO file; categories go by their names.

    Args:
        masks: Annotation id → segmentation. An annotation of ``truth`` without one counts as
            IoU 0.
        truth: COCO file with human masks. Crowd annotations are not compared.
        classwise: Whether to return each category's figure.
        groups: ``'coco'``, or groups of category names, see :func:`resolve_groups`.
        boundary: Whether to return Boundary IoU too, see :func:`boundary_iou`.

    Returns:
        As :func:`mean_ious`, and ``num_missing``. With ``boundary`` every key that begins with
        ``miou`` has a counterpart that begins with ``boundary_miou``.

    Raises:
        ValueError: An annotation of ``truth`` or a mask cannot be read, a human mask is missing, or
            ``groups`` does not fit the categories.
    """
    names = {category["id"]: category["name"] for category in truth["categories"]}
    if groups is not None:
        groups = resolve_groups(groups, [*names.values()])
    refuse_problems(truth, "the ground truth", allow_outside=True, boxes=False)  # masks count
    images = {image["id"]: image for image in truth["images"]}
    ious, boundary_ious, categories, areas = [], [], [], []
    missing = 0
    for ann in track(truth["annotations"], "comparing masks", "masks"):
        if ann.get("iscrowd"):
            continue
        pred, human = paired_rles(masks.get(ann["id"]), ann, images[ann["image_id"]])
        iou = boundary_value = 0.0
        if pred is None:
            missing += 1
        else:
            iou = float(mask_utils.iou([pred], [human], [0])[0, 0])
            if boundary:
                boundary_value = boundary_iou(*(mask_utils.decode(r) > 0 for r in (pred, human)))
        ious.append(iou)
        boundary_ious.append(boundary_value)
        categories.append(names.get(ann["category_id"], str(ann["category_id"])))
        areas.append(ann["bbox"][2] * ann["bbox"][3])
    grouping = np.array(categories), np.array(areas), classwise, groups
    result = mean_ious(np.array(ious), *grouping)
    if boundary:
        figures = mean_ious(np.array(boundary_ious), *grouping)
        result |= {f"boundary_{k}": v for k, v in figures.items() if k.startswith("miou")}
    return result | dict(num_missing=missing)


def evaluate_label_files(
    pred_file: str | Path, truth_file: str | Path, **options
) -> dict[str, float]:
    """:func:`evaluate_masks`, with its options, of a label file, matched by annotation id.

    Returns:
        Its figures, and ``num_human``: how many of the masks labeling has kept (``source``), and
        are perhaps the very ones that they are compared with.

    Raises:
        ValueError: As :func:`evaluate_masks` and :func:`check_pairs`.
    """
    pred, truth = read_coco(pred_file), read_coco(truth_file)
    refuse_problems(pred, pred_file, allow_outside=True, boxes=False)
    check_pairs(pred, truth, pred_file, truth_file)
    masks = {ann["id"]: ann.get("segmentation") for ann in pred["annotations"]}
    figures = evaluate_masks(masks, truth, **options)
    human = {ann["id"] for ann in pred["annotations"] if ann.get("source") == "human"}
    compared = {ann["id"] for ann in truth["annotations"] if not ann.get("iscrowd")}
    return figures | dict(num_human=len(human & compared))


def check_pairs(pred: dict, truth: dict, pred_file: str | Path, truth_file: str | Path) -> None:
    """Refuses two COCO files in which the same ids are those of other annotations.

    Annotations that cannot be used are passed over.

    Raises:
        ValueError: Such an annotation is on another image, by its name without the folder; or the
            boxes of most lie elsewhere, as where one file has been numbered anew.
    """
    names, (labels, humans) = [], [{}, {}]
    for coco, anns in ((pred, labels), (truth, humans)):
        sound = (image for image in coco["images"] if image_problem(image) is None)
        names.append({image["id"]: Path(image_file(image)).name for image in sound})
        problems = find_problems(coco, allow_outside=True)
        for i, ann in enumerate(coco["annotations"]):
            if i not in problems or is_about_box(problems[i]):
                anns[ann["id"]] = ann
    pairs = []
    for ann_id, human in humans.items():
        if ann_id not in labels:
            continue
        pair = labels[ann_id], human
        found, expected = (name[ann["image_id"]] for name, ann in zip(names, pair))
        if found != expected:
            raise ValueError(
                f"annotation {ann_id!r} is on {found} in {pred_file}, but on {expected} in "
                f"{truth_file}: their ids do not belong together"
            )
        boxes = [ann["bbox"] for ann in pair]
        if all(is_bbox(box) and min(box[2:]) > 0 for box in boxes):
            pairs.append(boxes)
    if not pairs:
        return
    boxes = torch.tensor(pairs, dtype=torch.float64).unbind(1)
    ious = bbox_overlaps(*(box_convert(b, "xywh", "xyxy") for b in boxes), is_aligned=True)
    if (median := np.median(ious)) < SAME_BOX:
        raise ValueError(
            f"{pred_file} and {truth_file} have annotations with the same ids, but most of their "
            f"boxes lie elsewhere (median IoU {median:.2f}): their ids do not belong together"
        )


@METRICS.register_module()
class MaskIoUMetric(BaseMetric):
    """Mean IoU of the masks that a runner's validation or test loop predicts for boxes.

    Boxes that the data set leaves out, such as those of classes that were not chosen, count as IoU
    0 and as ``num_missing``.

    Args:
        ann_file: COCO file with human masks for the same annotation ids.
        classwise: Whether to report each category.
        groups: Groups of categories to report: ``'coco'`` for COCO's things and semi-stuff, or
            a dict of lists of category names. Checked before the loop begins.
        boundary: Whether to report Boundary IoU too.

    Raises:
        ValueError: ``groups`` does not fit the categories.
    """

    default_prefix = "mask"

    def __init__(
        self,
        ann_file: str,
        classwise: bool = False,
        groups: str | Mapping[str, Sequence[str]] | None = None,
        boundary: bool = False,
        **kwargs,
    ) -> None:
        super().__init__(**kwargs)
        self.ann_file = ann_file
        self.options = dict(classwise=classwise, groups=groups, boundary=boundary)
        if groups is not None:
            resolve_groups(groups, [c["name"] for c in read_coco(ann_file)["categories"]])

    def process(self, data_batch: dict, data_samples: Sequence[dict]) -> None:
        """Encodes the masks of each image at once, so that only RLEs are held.

        Where the model has not pasted them (``paste_masks``), each is pasted in its box alone.

        Raises:
            ValueError: Predictions hold no annotation ids.
        """
        for sample in data_samples:
            pred = sample["pred_instances"]
            if "ann_ids" not in pred:
                raise ValueError("MaskIoUMetric needs annotation ids: use CocoBoxDataset")
            if "masks" in pred:
                rles = [encode_mask(mask) for mask in pred["masks"].cpu().numpy()]
            else:
                shape = sample["ori_shape"]
                rles = [w and encode_window(w, shape) for w in mask_windows(pred, shape)]
            self.results.append(dict(zip(pred["ann_ids"], rles)))

    def compute_metrics(self, results: list[dict]) -> dict[str, float]:
        """See :func:`evaluate_masks`."""
        masks = {ann_id: rle for result in results for ann_id, rle in result.items()}
        return evaluate_masks(masks, read_coco(self.ann_file), **self.options)
