# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import copy
import hashlib
import importlib.metadata
import inspect
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import mmcv
import mmdet
import mmengine
import mmpretrain
import numba
import numpy as np
import torch
from mmdet.registry import MODELS
from mmengine.config import Config
from mmengine.runner import Runner

from mal_mmdet.datasets.transforms import ExpandBBox
from mal_mmdet.labeling import (
    file_sha256,
    image_file,
    image_problem,
    open_coco,
    refuse_input,
    shard_folder,
)
from mal_mmdet.models import MaskAutoLabeler
from mal_mmdet.version import __version__

from .launch import class_of, expand_step, load_weights, unwrapped, use_boxes


def generate_labels(
    cfg: Config,
    checkpoint: str | Path,
    ann_file: str | Path,
    img_dir: str | Path,
    out_file: str | Path,
    *,
    label_source: str | None = None,
    flip_test: bool | None = None,
    refine_test: bool | None = None,
    thresholds: Sequence[float] | None = None,
    margins: Sequence[float] | None = None,
    predict_dtype: str | None = None,
    detections: str | Path | None = None,
    only_missing: bool = False,
    allow_outside: bool = False,
    date: str | None = None,
    resume: bool = False,
    **writer_options: Any,
) -> int:
    """Labels the boxes of a COCO file through the runner's test loop.

    The same config, weights, boxes, date and device give the same bytes, whatever the number of
    ranks and interruptions. What is finished lies in ``<out_file>.shards`` until the file is whole.
    Logs, and the config as it ran, go to ``labeling/`` in the config's ``work_dir``, which may be
    that of the training, or beside ``out_file``.

    Args:
        cfg: Config of a trained :class:`MaskAutoLabeler`.
        checkpoint: Its weights, a file.
        ann_file: COCO file with the boxes.
        img_dir: Folder that the file's images are relative to, see :func:`image_file`.
        out_file: COCO file to write; a report stands beside it, see :class:`LabelWriter`.
        label_source: Overrides the model's, see :class:`MaskAutoLabeler`.
        flip_test: Likewise.
        refine_test: Likewise.
        thresholds: Likewise.
        margins: Overrides the test pipeline's, see :class:`ExpandBBox`: several average as many
            crops of each box.
        predict_dtype: Likewise.
        detections: COCO results file of a detector, whose boxes are labeled in place of the
            annotations; what is written is then a results file too.
        only_missing: Whether annotations with a mask keep it.
        allow_outside: Whether images may lie outside ``img_dir``, see :func:`leaves_folder`.
        date: Is written into the file's ``info``, beside versions, config, and the hash of the
            weights.
        resume: Whether to go on with what an interrupted run has left, if it left anything.
        **writer_options: ``mask_format``, ``min_quality`` and ``low_quality`` of the
            :class:`LabelWriter`.

    Returns:
        Number of annotations that could not be labeled; known to the main rank, 0 on others.

    Raises:
        FileNotFoundError: No such checkpoint, no such folder of images, or not these images in it.
        ValueError: The config is of something else, the checkpoint does not fit it, a file is not
            what it should be, or ``out_file`` is one of those that are read.
        RuntimeError: Another process writes this label file, or an interrupted run did, and
            ``resume`` is not given or something else is labeled now; or ranks do not label the
            same, see :func:`common_fingerprint`.
        OSError: The disk is full.
    """
    refuse_input(out_file, ann_file, detections)
    if not Path(img_dir).is_dir():  # known before hours of labels that fail
        raise FileNotFoundError(f"there is no folder {img_dir} of the images")
    cfg = copy.deepcopy(cfg)
    kind = class_of(cfg.model, MODELS)
    if not (isinstance(kind, type) and issubclass(kind, MaskAutoLabeler)):
        raise ValueError(
            f"the config's model is a {cfg.model.type}; expected a MaskAutoLabeler, as the configs "
            "in configs/mal/ have"
        )
    # The config is dumped there, and must not take the place of the one that was trained with.
    cfg.work_dir = str(Path(cfg.get("work_dir") or Path(out_file).parent) / "labeling")
    options = dict(
        label_source=label_source,
        flip_test=flip_test,
        refine_test=refine_test,
        thresholds=thresholds,
        predict_dtype=predict_dtype,
    )
    cfg.model.update({key: value for key, value in options.items() if value is not None})
    cfg.model.paste_masks = False
    cfg.load_from, cfg.resume = None, False  # the weights are ``checkpoint``, no others
    use_boxes(cfg, ann_file, img_dir)
    _check_images(ann_file, img_dir, cfg.test_dataloader.dataset.dataset.get("path_parts"))
    loader = cfg.test_dataloader
    loader.dataset.dataset.update(
        detections=detections and str(detections),
        only_missing=only_missing,
        allow_outside=allow_outside,
    )
    loader.batch_size = cfg.model.get("crops_per_batch", 32)
    if margins is not None:
        margin = margins[0] if len(margins) == 1 else list(margins)
        expand_step(cfg).margin = margin
    loader.pin_memory = torch.cuda.is_available()
    pipelines = {k: v for k, v in loader.dataset.items() if k != "dataset"}
    pipelines = [pipelines, loader.dataset.dataset.pipeline]
    weights = file_sha256(checkpoint)
    fingerprint = dict(
        weights=weights,
        boxes=file_sha256(ann_file),
        detections=detections and file_sha256(detections),
        images=str(Path(img_dir).resolve()),
        config=_hash(
            [
                cfg.model,
                _label_options(cfg),
                pipelines,
                only_missing,
                allow_outside,
                writer_options.get("mask_format"),
            ]
        ),
        software=_hash(_versions()),
        device=torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
    )
    loader.batch_sampler = dict(
        type="LabelBatchSampler", shards=str(shard_folder(out_file)), fingerprint=fingerprint
    )
    cfg.test_evaluator = dict(
        type="LabelWriter",
        ann_file=str(ann_file),
        out_file=str(out_file),
        detections=loader.dataset.dataset.detections,
        only_missing=only_missing,
        allow_outside=allow_outside,
        info=_provenance(cfg, weights, date),
        fingerprint=fingerprint,
        resume=resume,
        **writer_options,
    )
    cfg.get("default_hooks", {}).pop("visualization", None)  # no masks of whole images to draw
    cfg.custom_hooks = [dict(type="LabelProgressHook"), dict(type="LabelStopHook")]
    runner = Runner.from_cfg(cfg)
    load_weights(runner.model, checkpoint)
    unwrapped(runner.model).cast_networks()
    return runner.test().get("labels/failed", 0)


def _check_images(ann_file: str | Path, img_dir: str | Path, path_parts: int | None) -> None:
    """A wrong folder would put a file without labels in the place of one from the right folder."""
    images = (i for i in open_coco(ann_file)["images"] if image_problem(i) is None)
    paths = [Path(img_dir, image_file(image, path_parts)) for image in images]
    # Path.exists raises an error for names that are too long.
    if paths and not any(map(os.path.exists, paths)):
        raise FileNotFoundError(
            f"none of the {len(paths)} images of {ann_file} was found in {img_dir}; looked for "
            f"{paths[0]} and so on. Give the folder that their names are relative to by --img-dir"
        )


def _label_options(cfg: Config) -> dict:
    """How the model makes masks of probabilities, whether the config or a default says so."""
    defaults = inspect.signature(MaskAutoLabeler).parameters
    options = (
        "label_source",
        "flip_test",
        "refine_test",
        "color_weight",
        "thresholds",
        "predict_dtype",
    )
    return {key: cfg.model.get(key, defaults[key].default) for key in options}


def _provenance(cfg: Config, weights: str, date: str | None) -> dict:
    expand = expand_step(cfg)
    info = dict(
        versions=_versions(),
        config=Path(cfg.filename or "").stem,
        weights_sha256=weights,
        **_label_options(cfg),
        margins=expand.get("margin", inspect.signature(ExpandBBox).parameters["margin"].default),
    )
    return info | (dict(date=date) if date else {})


def _versions() -> dict[str, str]:
    libraries = (cv2, mmcv, mmdet, mmengine, mmpretrain, numba, np, torch)
    return dict(
        mal_mmdet=__version__,
        **{library.__name__: library.__version__ for library in libraries},
        pycocotools=importlib.metadata.version("pycocotools"),
    )


def _hash(content: object) -> str:
    text = json.dumps(content, sort_keys=True, default=repr)
    return hashlib.sha256(text.encode()).hexdigest()
