# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from mmdet.registry import METRICS
from mmengine.evaluator import BaseMetric
from pycocotools import mask as mask_utils

from .coco_file import find_problems, read_boxes, read_detections, without_nan, write_json
from .polygons import mask_to_polygons

MASK_FORMATS = ("rle", "polygon")


@METRICS.register_module()
class LabelWriter(BaseMetric):
    """Writes the predicted masks into a copy of the annotation file they were made for.

    Every annotation keeps its place and all that it had; ``segmentation`` becomes the mask as
    compressed RLE or polygons and ``area`` the mask's. Crowd annotations are not labeled: one
    without a mask gets its box as RLE, so that stock loaders can read it. Annotations that could
    not be labeled are left out of the label file, since no loader could use them, and stand whole
    in ``<out_file>.report.json`` with the reason (NaN as null there).

    Args:
        ann_file: The COCO file with the boxes.
        out_file: The COCO file to write.
        detections: COCO results file whose boxes were labeled in place of the annotations. What
            is written is then a results file too: every entry as it was, and its mask.
        mask_format: ``rle``, or ``polygon`` for what ignores RLE, see :func:`mask_to_polygons`;
            results files are always RLE, as pycocotools scores nothing else.

    Raises:
        ValueError: Unknown format, or polygons for a results file.
    """

    default_prefix = "labels"

    def __init__(
        self,
        ann_file: str,
        out_file: str,
        detections: str | None = None,
        mask_format: str = "rle",
        **kwargs,
    ) -> None:
        super().__init__(**kwargs)
        if mask_format not in MASK_FORMATS:
            raise ValueError(f"mask_format is {mask_format!r}, expected one of {MASK_FORMATS}")
        if detections and mask_format != "rle":
            raise ValueError("a results file has its masks as RLE; leave mask_format at 'rle'")
        self.mask_format = mask_format
        self.detections = detections
        self.ann_file = ann_file
        self.out_file = out_file

    def process(self, data_batch: dict, data_samples: Sequence[dict]) -> None:
        """Encodes the masks of each image at once, so that only RLEs are held."""
        for sample in data_samples:
            pred = sample["pred_instances"]
            rles = [encode_mask(mask) for mask in pred["masks"].cpu().numpy()]
            indices = pred["ann_indices"].tolist()
            self.results.append(
                dict(masks=dict(zip(indices, rles)), failed=sample.get("failed", {}))
            )

    def compute_metrics(self, results: list[dict]) -> dict[str, int]:
        """Writes label file and report; returns how many boxes were labeled and how many not."""
        coco = read_boxes(self.ann_file, self.detections)
        masks = {i: rle for result in results for i, rle in result["masks"].items()}
        problems = find_problems(coco, scored=bool(self.detections))
        for result in results:
            problems.update(result["failed"])

        images = {image["id"]: image for image in coco["images"]}
        annotations = []
        for i, ann in enumerate(coco["annotations"]):
            if i in masks:
                ann["segmentation"] = masks[i]
                if self.mask_format == "polygon":
                    ann["segmentation"] = mask_to_polygons(mask_utils.decode(masks[i]))
                ann["area"] = int(mask_utils.area(masks[i]))
            elif i in problems:
                continue
            elif ann.get("iscrowd"):
                complete_crowd(ann, images[ann["image_id"]])
            else:
                problems[i] = "was not among the predictions"
                continue
            annotations.append(ann)
        failed = [
            dict(
                id=ann.get("id") if isinstance(ann, dict) else None,
                index=i,
                problem=problems[i],
                annotation=ann,
            )
            for i, ann in enumerate(coco["annotations"])
            if i in problems
        ]
        report = without_nan(dict(labeled=len(masks), failed=failed))
        write_json(report_path(self.out_file), report, indent=1)
        if self.detections:
            found = read_detections(self.detections)
            labels = [found[i] | dict(segmentation=masks[i]) for i in sorted(masks)]
            write_json(self.out_file, labels)
        else:
            write_json(self.out_file, {**coco, "annotations": annotations})
        return dict(labeled=len(masks), failed=len(failed))


def report_path(out_file: str | Path) -> Path:
    """Where the report of a label file stands: ``labels.json`` → ``labels.json.report.json``."""
    return Path(f"{out_file}.report.json")


def encode_mask(mask: np.ndarray) -> dict:
    """Compressed RLE of a mask (H, W), with ``counts`` as text, ready for JSON."""
    rle = mask_utils.encode(np.asfortranarray(mask, dtype=np.uint8))
    return dict(size=rle["size"], counts=rle["counts"].decode("ascii"))


def complete_crowd(ann: dict, image: dict) -> None:
    """Gives a crowd annotation what stock loaders need: its box as mask, and an area.

    Args:
        ann: COCO annotation; a mask or area that it has stays. Changed in place.
        image: Its image's entry in the COCO file.
    """
    x, y, w, h = ann["bbox"]
    ann.setdefault("area", w * h)
    if not ann.get("segmentation"):
        x0, y0 = max(x, 0), max(y, 0)
        x1, y1 = min(x + w, image["width"]), min(y + h, image["height"])
        polygon = [x0, y0, x1, y0, x1, y1, x0, y1]
        (rle,) = mask_utils.frPyObjects([polygon], image["height"], image["width"])
        ann["segmentation"] = dict(size=rle["size"], counts=rle["counts"].decode("ascii"))
