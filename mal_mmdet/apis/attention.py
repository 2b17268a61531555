# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from mmdet.registry import DATASETS, MODELS
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.registry import init_default_scope
from PIL import Image

from mal_mmdet.datasets import BoxCropDataset
from mal_mmdet.progress import track
from mal_mmdet.visualization import arrange, attention_maps, crop_to_image, draw_attention
from mal_mmdet.visualization.attention_maps import attention_modules, check_layers

from .launch import load_weights, use_boxes, use_one_crop

ATTENTION_SOURCES = ("student", "teacher")


def draw_attention_maps(
    cfg: Config,
    checkpoint: str | Path,
    ann_file: str | Path,
    img_dir: str | Path,
    out_dir: str | Path,
    ids: Sequence[int | str] | None = None,
    number: int = 8,
    layers: Sequence[int] | None = None,
    source: str = "student",
    size: int = 256,
    seed: int = 0,
) -> list[Path]:
    """Draws attention maps of the encoder for boxes of a COCO file, a picture for each.

    Args:
        cfg: Config of a trained :class:`MaskAutoLabeler`.
        checkpoint: Its weights.
        ann_file: COCO file with the boxes.
        img_dir: Folder that the file's ``file_name``s are relative to.
        out_dir: Folder for the pictures, ``attention_<annotation id>.png``.
        ids: Annotation ids to draw; without them ``number`` boxes chosen at random.
        number: How many boxes to choose.
        seed: Seed of the choice.
        layers: Layers to draw, from 1; without them the last of each third of the encoder.
        source: Whose encoder, ``'student'`` or ``'teacher'``.
        size: Side of one panel in pixels.

    Returns:
        The pictures' paths.

    Raises:
        ValueError: Unknown source, ids or layers, no number of boxes, an encoder without attention
            maps, or a checkpoint of another network.
        RuntimeError: An image cannot be read.
    """
    if source not in ATTENTION_SOURCES:
        raise ValueError(f"source is {source!r}, but must be one of {ATTENTION_SOURCES}")
    if number < 1:
        raise ValueError(f"number is {number}, but must be at least 1")
    cfg = copy.deepcopy(cfg)
    init_default_scope(cfg.get("default_scope", "mmdet"))
    model = MODELS.build(cfg.model)
    load_weights(model, checkpoint)
    encoder = getattr(model, source).backbone
    layers = check_layers(layers, len(attention_modules(encoder)))
    model.to(get_device()).eval()

    use_boxes(cfg, ann_file, img_dir)
    use_one_crop(cfg)
    cfg.test_dataloader.dataset.group_by_image = False
    dataset = DATASETS.build(cfg.test_dataloader.dataset)
    if ids is None:
        chosen = np.random.default_rng(seed).permutation(len(dataset))[:number]
    else:
        chosen = find_boxes(dataset, ids)

    Path(out_dir).mkdir(parents=True, exist_ok=True)
    paths = []
    for index in track(chosen, "drawing attention", "boxes"):
        sample = dataset[int(index)]
        instances = sample["data_samples"].gt_instances
        batch = dict(inputs=[sample["inputs"][None]], data_samples=[sample["data_samples"]])
        with torch.no_grad():
            crop = model.data_preprocessor(batch)["inputs"][0]
        maps = attention_maps(encoder, crop, instances.bboxes[0], layers)
        image = crop_to_image(sample["inputs"], model.data_preprocessor.bgr_to_rgb, size)
        bbox = instances.bboxes[0].numpy() * (size / crop.shape[-1])
        name = str(instances.ann_ids[0]).replace("/", "_")
        paths.append(Path(out_dir) / f"attention_{name}.png")
        Image.fromarray(arrange([draw_attention(maps, image, bbox)], 1)).save(paths[-1])
    return paths


def find_boxes(dataset: BoxCropDataset, ids: Sequence[int | str]) -> list[int]:
    """Places of annotations in a data set of boxes.

    Args:
        dataset: Around a :class:`CocoBoxDataset`.
        ids: Annotation ids, or their texts.

    Raises:
        ValueError: Some are not there; names them.
    """
    source, places = dataset.dataset, {}
    for place, (image, instance) in enumerate(dataset.boxes):
        ann_id = source.get_data_info(int(image))["instances"][instance]["ann_id"]
        places[ann_id] = place
        places.setdefault(str(ann_id), place)
    missing = [ann_id for ann_id in ids if ann_id not in places]
    if missing:
        raise ValueError(
            f"annotations {missing} are not among the {len(dataset)} usable boxes of "
            f"{source.ann_file}"
        )
    return [places[ann_id] for ann_id in ids]
