# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from pathlib import Path

import numpy as np
from mmdet.visualization import DetLocalVisualizer
from PIL import Image
from pycocotools import mask as mask_utils

from mal_mmdet.evaluation.mask_iou import to_rle
from mal_mmdet.labeling import image_file, read_coco
from mal_mmdet.structures import bbox_to_crop, crop_and_resize, expand_bbox

GREEN, ORANGE, BLUE = (60, 220, 60), (255, 140, 0), (60, 120, 255)


def draw_label_sheet(
    pred_file: str | Path,
    truth_file: str | Path,
    img_dir: str | Path,
    out_file: str | Path,
    number: int = 15,
    columns: int = 3,
    size: int = 128,
    seed: int = 0,
) -> None:
    """Draws boxes chosen at random: image and box, predicted mask, human mask, and their IoU.

    Args:
        pred_file: COCO file with predicted masks.
        truth_file: COCO file with human masks for the same annotation ids.
        img_dir: Folder of the images.
        out_file: Picture to write.
        number: How many boxes.
        columns: Boxes side by side.
        size: Side of one crop in pixels.
        seed: Seed of the choice.
    """
    truth = read_coco(truth_file)
    pred = {ann["id"]: ann for ann in read_coco(pred_file)["annotations"]}
    images = {image["id"]: image for image in truth["images"]}
    annotations = [a for a in truth["annotations"] if not a.get("iscrowd") and a["id"] in pred]
    order = np.random.default_rng(seed).permutation(len(annotations))[:number]
    visualizer = DetLocalVisualizer()
    tiles = []
    for ann in (annotations[i] for i in sorted(order)):
        info = images[ann["image_id"]]
        image = np.asarray(Image.open(Path(img_dir) / image_file(info)).convert("RGB"))
        rles = [to_rle(a["segmentation"], info) for a in (pred[ann["id"]], ann)]
        masks = [mask_utils.decode(rle).astype(bool) for rle in rles]
        iou = float(mask_utils.iou(rles[:1], rles[1:], [0])[0, 0])

        x, y, w, h = ann["bbox"]
        bbox = np.array([x, y, x + w, y + h])
        crop_bbox = expand_bbox(bbox, np.full(4, 0.3))
        crop = crop_and_resize(image, crop_bbox, size)
        # Outside the image the crop shows its reflection, but a mask never leaves the image.
        left, top, right, bottom = crop_bbox
        pad = max(0, -left, -top, right - info["width"], bottom - info["height"])
        panels = []
        for mask, colour in ((None, GREEN), (masks[0], ORANGE), (masks[1], BLUE)):
            visualizer.set_image(crop)
            if mask is None:
                visualizer.draw_bboxes(
                    bbox_to_crop(bbox, crop_bbox, size)[None].clip(0, size - 1),
                    edge_colors=colour,
                )
            else:
                padded = np.pad(mask, pad)[top + pad : bottom + pad, left + pad : right + pad]
                part = Image.fromarray(padded).resize((size, size), Image.Resampling.NEAREST)
                visualizer.draw_binary_masks(np.asarray(part), colors=colour, alphas=0.6)
                if colour is ORANGE:
                    visualizer.draw_texts(
                        f"{iou:.2f}",
                        np.array([3, 3]),
                        font_sizes=11,
                        colors="white",
                        bboxes=dict(facecolor="black", alpha=0.6, pad=1, edgecolor="none"),
                    )
            panels.append(visualizer.get_image())
        tiles.append(np.pad(np.hstack(panels), ((2, 2), (4, 4), (0, 0)), constant_values=255))
    while len(tiles) % columns:
        tiles.append(np.full_like(tiles[0], 255))
    rows = [np.hstack(tiles[i : i + columns]) for i in range(0, len(tiles), columns)]
    Path(out_file).parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.vstack(rows)).save(out_file)
