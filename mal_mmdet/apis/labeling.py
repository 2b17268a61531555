# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path

from mmengine.config import Config
from mmengine.runner import Runner

from .launch import load_weights, use_boxes


def generate_labels(
    cfg: Config,
    checkpoint: str | Path,
    ann_file: str | Path,
    img_dir: str | Path,
    out_file: str | Path,
    label_source: str | None = None,
    flip_test: bool | None = None,
    thresholds: Sequence[float] | None = None,
    detections: str | Path | None = None,
    mask_format: str = "rle",
) -> int:
    """Labels the boxes of a COCO file through the runner's test loop.

    Args:
        cfg: Config of a trained :class:`MaskAutoLabeler`.
        checkpoint: Its weights.
        ann_file: COCO file with the boxes.
        img_dir: Folder that the file's images are relative to, see :func:`image_file`.
        out_file: COCO file to write; a report stands beside it, see :class:`LabelWriter`.
        label_source, flip_test, thresholds: Override the model's, see
            :class:`MaskAutoLabeler`.
        detections: COCO results file of a detector, whose boxes are labeled in place of the
            annotations; what is written is then a results file too.
        mask_format: ``rle`` or ``polygon``, see :class:`LabelWriter`.

    Returns:
        Number of annotations that could not be labeled.

    Raises:
        ValueError: The checkpoint does not fit the config, or a file is not what it should be.
    """
    cfg = copy.deepcopy(cfg)
    cfg.setdefault("work_dir", str(Path(out_file).parent / "labeling"))
    options = dict(label_source=label_source, flip_test=flip_test, thresholds=thresholds)
    cfg.model.update({key: value for key, value in options.items() if value is not None})
    cfg.load_from = None
    use_boxes(cfg, ann_file, img_dir)
    cfg.test_dataloader.dataset.dataset.detections = detections and str(detections)
    cfg.test_evaluator = dict(
        type="LabelWriter",
        ann_file=str(ann_file),
        out_file=str(out_file),
        detections=detections and str(detections),
        mask_format=mask_format,
    )
    cfg.custom_hooks = [dict(type="LabelProgressHook")]
    runner = Runner.from_cfg(cfg)
    load_weights(runner, checkpoint)
    if len(runner.test_loop.dataloader.dataset):
        metrics = runner.test()
    else:  # not one box that the network could see: only the report is left to write
        metrics = runner.test_loop.evaluator.evaluate(0)
    return metrics["labels/failed"]
