# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from mmdet.visualization import DetLocalVisualizer
from PIL import Image
from pycocotools import mask as mask_utils

from mal_mmdet.evaluation.mask_iou import check_pairs, paired_iou, paired_rles
from mal_mmdet.labeling import (
    find_problems,
    image_file,
    read_coco,
    read_image_of,
    refuse_input,
    refuse_problems,
)
from mal_mmdet.progress import track
from mal_mmdet.structures import bbox_to_crop, crop_and_resize, expand_bbox, mask_on_cells

from .panels import BLUE, ORANGE, arrange, draw_panel

ORDERS = ("random", "best", "worst")


def draw_label_sheet(
    pred_file: str | Path,
    truth_file: str | Path,
    img_dir: str | Path,
    out_file: str | Path,
    number: int = 15,
    columns: int = 3,
    size: int = 128,
    order: str = "random",
    seed: int = 0,
    allow_outside: bool = False,
) -> None:
    """Draws boxes: image and box, predicted mask, human mask, and their IoU.

    Args:
        pred_file: COCO file with predicted masks.
        truth_file: COCO file with human masks for the same annotation ids.
        img_dir: Folder of the images.
        out_file: Picture to write.
        number: How many boxes.
        columns: Boxes side by side.
        size: Side of one crop in pixels.
        order: Which boxes: chosen at ``'random'`` and in the order of the file, or by IoU,
            ``'best'`` or ``'worst'`` first.
        seed: Seed of the random choice.
        allow_outside: Whether images may lie outside ``img_dir``, see :func:`leaves_folder`.

    Raises:
        ValueError: Unknown order, nothing to draw, a picture of a kind that Pillow cannot write, an
            annotation cannot be used, no box has a mask in both files, their ids do not belong
            together, an image cannot be read or has another size than the files say, or
            ``out_file`` is one of those that are read.
    """
    if order not in ORDERS:
        raise ValueError(f"order is {order!r}, but must be one of {ORDERS}")
    if number < 1 or size < 1:
        raise ValueError(f"number is {number} and size {size}, expected at least 1 of both")
    if Image.registered_extensions().get(Path(out_file).suffix.lower()) not in Image.SAVE:
        raise ValueError(f"{out_file} is no picture, whose name would end with .png or .jpg")
    labels, truth = read_coco(pred_file), read_coco(truth_file)
    for coco, file in ((labels, pred_file), (truth, truth_file)):
        refuse_problems(coco, file, allow_outside, boxes=False)
    check_pairs(labels, truth, pred_file, truth_file)
    images = {image["id"]: image for image in truth["images"]}
    pred = {ann["id"]: ann.get("segmentation") for ann in labels["annotations"]}
    unusable = find_problems(truth, allow_outside=True)  # boxes that nothing can be cropped by
    annotations = [
        ann
        for i, ann in enumerate(truth["annotations"])
        if i not in unusable and not ann.get("iscrowd") and pred.get(ann["id"])
    ]
    if not annotations:
        raise ValueError(f"no annotation has a mask in both {pred_file} and {truth_file}")

    def iou(ann: dict) -> float:
        return paired_iou(pred[ann["id"]], ann, images[ann["image_id"]])

    if order == "random":
        picked = np.random.default_rng(seed).permutation(len(annotations))[:number]
        annotations = [annotations[i] for i in sorted(picked)]
    else:
        ious = [iou(ann) for ann in track(annotations, "comparing masks", "masks")]
        places = sorted(range(len(ious)), key=ious.__getitem__, reverse=order == "best")
        annotations = [annotations[i] for i in places[:number]]

    drawn = {ann["image_id"]: images[ann["image_id"]] for ann in annotations}
    paths = [Path(img_dir) / image_file(image) for image in drawn.values()]
    refuse_input(out_file, pred_file, truth_file, *paths)

    visualizer = DetLocalVisualizer()
    tiles = []
    for ann in annotations:
        info = images[ann["image_id"]]
        image = read_image_of(info, img_dir)[..., ::-1]
        x, y, w, h = ann["bbox"]
        bbox = np.array([x, y, x + w, y + h])
        crop_bbox = expand_bbox(bbox, np.full(4, 0.3))
        crop = crop_and_resize(image, crop_bbox, size)
        rles = paired_rles(pred[ann["id"]], ann, info)
        masks = (torch.from_numpy(mask_utils.decode(rle)) for rle in rles)
        predicted, human = (
            mask_on_cells(mask, torch.from_numpy(crop_bbox), (size, size)).numpy() for mask in masks
        )
        tiles.append(
            [
                draw_panel(visualizer, crop, bbox=bbox_to_crop(bbox, crop_bbox, size)),
                draw_panel(visualizer, crop, mask=predicted, colour=ORANGE, text=f"{iou(ann):.2f}"),
                draw_panel(visualizer, crop, mask=human, colour=BLUE),
            ]
        )
    Path(out_file).parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(arrange(tiles, columns)).save(out_file)
