# SPDX-License-Identifier: Apache-2.0
"""The boxes of data sets whose files are no COCO files, as a COCO file that can be labeled."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mmdet.registry import DATASETS
from mmengine.config import Config
from mmengine.registry import init_default_scope
from torch.utils.data import Dataset

from mal_mmdet.labeling import image_size
from mal_mmdet.progress import track

from .box_crop_dataset import BoxCropDataset


def build_training_boxes(cfg: Config) -> Dataset:
    """Builds the data set whose boxes a phase 1 config trains on, before they are cropped.

    Raises:
        ValueError: The config does not train on boxes.
    """
    dataset = (cfg.get("train_dataloader") or {}).get("dataset", {})
    kind = dataset.get("type")
    kind = DATASETS.get(kind) if isinstance(kind, str) else kind
    if not (isinstance(kind, type) and issubclass(kind, BoxCropDataset)):
        raise ValueError(
            f"train_dataloader.dataset of {cfg.filename} is of type {dataset.get('type')!r}, "
            "expected 'BoxCropDataset': give a config of phase 1, such as "
            "configs/mal/mal_vit-base-mae_8xb4-10e_voc.py"
        )
    init_default_scope("mmdet")
    return DATASETS.build(dataset.dataset)


def boxes_to_coco(dataset: Dataset, img_dir: str | Path) -> dict[str, Any]:
    """The boxes of an mmdet data set as a COCO file without masks.

    Images, annotations and categories are numbered from 1 in the data set's order. What
    OpenImages calls a group becomes a crowd. What PASCAL VOC calls difficult is one object, and
    stays one to be labeled, with ``difficult`` set to 1; of any other data set what it says to
    ignore becomes a crowd.

    Args:
        dataset: Data set of mmdet, or a concatenation. Its images are opened, by their header
            alone, only where it does not know their size.
        img_dir: Folder that every ``file_name`` is to be relative to.

    Returns:
        COCO file; ``bbox`` is [x, y, width, height] in pixels.

    Raises:
        ValueError: An image lies outside ``img_dir``, or occurs twice.
    """
    folder = Path(img_dir).absolute()
    images, annotations = [], []
    names: set[str] = set()
    for i in track(range(len(dataset)), "reading boxes", "images"):
        info = dataset.get_data_info(i)
        path = Path(info["img_path"]).absolute()
        if not path.is_relative_to(folder):
            raise ValueError(
                f"image {path} does not lie in the folder of images {folder}; name a folder "
                "that all images lie in"
            )
        name = path.relative_to(folder).as_posix()
        if name in names:
            raise ValueError(
                f"image {path} occurs twice in the data set; convert it without RepeatDataset, "
                "and parts that share images one by one"
            )
        names.add(name)
        width, height = _size(info)
        images.append(dict(id=i + 1, file_name=name, width=width, height=height))
        for instance in info["instances"]:
            x0, y0, x1, y1 = instance["bbox"]
            ignored = bool(instance.get("ignore_flag", 0))
            # XMLDataset, and it alone, sets ignore_flag for what is difficult.
            difficult = ignored and "xml_path" in info
            crowd = (ignored and not difficult) or instance.get("is_group_of", False)
            annotation = dict(
                id=len(annotations) + 1,
                image_id=i + 1,
                category_id=instance["bbox_label"] + 1,
                bbox=[x0, y0, x1 - x0, y1 - y0],
                area=(x1 - x0) * (y1 - y0),
                iscrowd=int(crowd),
            )
            annotations.append(annotation | (dict(difficult=1) if difficult else {}))
    categories = [dict(id=i + 1, name=c) for i, c in enumerate(dataset.metainfo["classes"])]
    return dict(images=images, annotations=annotations, categories=categories)


def _size(info: dict) -> tuple[int, int]:
    if "width" in info and "height" in info:
        return int(info["width"]), int(info["height"])
    return image_size(info["img_path"])
