# SPDX-License-Identifier: Apache-2.0
"""Masks from boxes without any learning, for comparison: box, ellipse, GrabCut."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import torch
from pycocotools import mask as mask_utils

from mal_mmdet.progress import track

from .coco_file import read_coco, read_image_of, refuse_input, refuse_problems, write_json
from .label_writer import complete_annotation, encode_mask
from .paste import pixel_span

# (image, x0, y0, x1, y1) → mask; the window is in whole pixels, inside the image
Baseline = Callable[[np.ndarray, int, int, int, int], np.ndarray]


def filled_box(image: np.ndarray, x0: int, y0: int, x1: int, y1: int) -> np.ndarray:
    """The box itself as a bool mask (H, W)."""
    mask = np.zeros(image.shape[:2], dtype=bool)
    mask[y0:y1, x0:x1] = True
    return mask


def inscribed_ellipse(image: np.ndarray, x0: int, y0: int, x1: int, y1: int) -> np.ndarray:
    """The ellipse that touches the four sides of the box."""
    rows, columns = np.ogrid[: image.shape[0], : image.shape[1]]
    x = (2 * columns + 1 - x0 - x1) / (x1 - x0)
    y = (2 * rows + 1 - y0 - y1) / (y1 - y0)
    return x**2 + y**2 <= 1


def grabcut(image: np.ndarray, x0: int, y0: int, x1: int, y1: int) -> np.ndarray:
    """OpenCV's GrabCut, started from the box (5 iterations); the box where that finds nothing.

    Colours are learned from the box and a margin of half its size around it.
    """
    margin_x, margin_y = max((x1 - x0) // 2, 8), max((y1 - y0) // 2, 8)
    left, top = max(x0 - margin_x, 0), max(y0 - margin_y, 0)
    window = np.ascontiguousarray(image[top : y1 + margin_y, left : x1 + margin_x])
    state = np.zeros(window.shape[:2], dtype=np.uint8)
    state[y0 - top : y1 - top, x0 - left : x1 - left] = cv2.GC_PR_FGD
    if (state == cv2.GC_PR_FGD).all():  # nothing known to be background
        return filled_box(image, x0, y0, x1, y1)
    cv2.setRNGSeed(0)
    models = np.zeros((1, 65)), np.zeros((1, 65))
    try:
        cv2.grabCut(window, state, None, *models, 5, cv2.GC_INIT_WITH_MASK)
    except cv2.error:  # too few pixels for its colour models
        return filled_box(image, x0, y0, x1, y1)
    found = state == cv2.GC_PR_FGD
    if not found.any():
        return filled_box(image, x0, y0, x1, y1)
    mask = np.zeros(image.shape[:2], dtype=bool)
    mask[top : top + found.shape[0], left : left + found.shape[1]] = found
    return mask


BASELINES: dict[str, Baseline] = dict(box=filled_box, ellipse=inscribed_ellipse, grabcut=grabcut)


def label_with_baseline(
    method: str,
    ann_file: str | Path,
    img_dir: str | Path,
    out_file: str | Path,
    allow_outside: bool = False,
) -> None:
    """Writes a label file like ``generate_labels``, with a baseline's masks.

    Args:
        method: A key of ``BASELINES``.
        ann_file: COCO file with boxes. Its crowd annotations are not labeled.
        img_dir: Folder of the images.
        out_file: COCO file to write.
        allow_outside: Whether images may lie outside ``img_dir``, see :func:`leaves_folder`.

    Raises:
        ValueError: An annotation cannot be used, an image cannot be read or has another size than
            the file says, or ``out_file`` is ``ann_file``.
    """
    refuse_input(out_file, ann_file)
    coco = read_coco(ann_file)
    refuse_problems(coco, ann_file, allow_outside)
    images = {image["id"]: image for image in coco["images"]}
    by_image: dict = {}
    for ann in coco["annotations"]:
        if ann.get("iscrowd"):
            if problem := complete_annotation(ann, images[ann["image_id"]]):
                raise ValueError(f"crowd {ann['id']!r} of {ann_file}: {problem}")
        else:
            by_image.setdefault(ann["image_id"], []).append(ann)
    entries = [images[image_id] for image_id in by_image]
    bboxes = [[ann["bbox"] for ann in anns] for anns in by_image.values()]
    with ThreadPoolExecutor(torch.get_num_threads()) as pool:  # OpenCV lets others run
        found = pool.map(partial(_label_image, method, img_dir), entries, bboxes)
        found = track(found, method, "images", len(entries))
        for rles, anns in zip(found, by_image.values()):  # in this order, or its end is not met
            for ann, rle in zip(anns, rles):
                ann["segmentation"] = rle
                ann["area"] = int(mask_utils.area(rle))
                ann["iscrowd"] = 0
    write_json(out_file, coco)


def fill_boxes(ann_file: str | Path, out_file: str | Path) -> None:
    """Writes a label file whose masks are the boxes, as polygons, without looking at images.

    Args:
        ann_file: COCO file with boxes. Its crowd annotations stay as they are.
        out_file: COCO file to write.

    Raises:
        ValueError: An annotation has no box of numbers, or cannot be used otherwise.
    """
    coco = read_coco(ann_file)
    refuse_problems(coco, ann_file, allow_outside=True, boxes=False)
    for ann in coco["annotations"]:
        if ann.get("iscrowd"):
            continue
        x, y, w, h = map(float, ann["bbox"])  # mmdet scales the numbers of a polygon in place
        ann["segmentation"] = [[x, y, x + w, y, x + w, y + h, x, y + h]]
        ann["area"] = w * h
        ann["iscrowd"] = 0
    write_json(out_file, coco)


def _label_image(
    method: str, img_dir: str | Path, entry: dict, bboxes: list[list[float]]
) -> list[dict]:
    image = read_image_of(entry, img_dir)
    rles = []
    for x, y, w, h in bboxes:
        x0, x1 = pixel_span(x, x + w, image.shape[1])
        y0, y1 = pixel_span(y, y + h, image.shape[0])
        rles.append(encode_mask(BASELINES[method](image, x0, y0, x1, y1)))
    return rles
