# SPDX-License-Identifier: Apache-2.0
"""COCO's average precision, measured twice: by pycocotools and by faster-coco-eval."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
from faster_coco_eval import COCO as FasterCOCO
from faster_coco_eval import COCOeval_faster
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

FIGURES = ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large")


def coco_ap(truth_file: str | Path, results_file: str | Path, iou_type: str) -> dict[str, float]:
    """Average precision of detections, at most 100 an image.

    Args:
        truth_file: COCO file with human boxes, and masks unless ``iou_type`` is ``'bbox'``.
        results_file: COCO results file, as MMDetection's ``CocoMetric`` writes it to its
            ``outfile_prefix``.
        iou_type: ``'segm'``, ``'bbox'``, or ``'boundary'``: Boundary AP (Cheng et al., CVPR
            2021), where a pair's IoU is the lesser of mask IoU and Boundary IoU.

    Returns:
        ``FIGURES``, in [0, 1]: over IoU from 0.5 to 0.95, at 0.5, at 0.75, and by size, which is
        the ``area`` of an annotation and, of detections, the mask's, or the box's for ``'bbox'``.
        NaN where there are no objects.

    Raises:
        ValueError: No such ``iou_type``, or an annotation has the id 0, which both evaluators take
            for no annotation.
        RuntimeError: The two evaluators disagree. Boundary AP is faster-coco-eval's alone.
    """
    if iou_type not in ("segm", "bbox", "boundary"):
        raise ValueError(f"iou_type is {iou_type!r}, expected 'segm', 'bbox' or 'boundary'")
    figures = _measure(FasterCOCO, COCOeval_faster, truth_file, results_file, iou_type)
    if iou_type != "boundary":
        others = _measure(COCO, COCOeval, truth_file, results_file, iou_type)
        if not np.allclose(figures, others, rtol=0, atol=1e-6, equal_nan=True):
            raise RuntimeError(
                f"two evaluators disagree on {results_file} against {truth_file}: "
                f"faster-coco-eval measures {figures.tolist()} and pycocotools {others.tolist()} "
                f"({', '.join(FIGURES)} of {iou_type}). One has an error: try other versions"
            )
    return dict(zip(FIGURES, figures.tolist()))


def _read_results(results_file: str | Path, iou_type: str) -> list[dict[str, Any]]:
    results = json.loads(Path(results_file).read_text(encoding="utf-8"))
    if iou_type != "bbox":
        # With a box in the results both evaluators would sort masks by the size of their boxes.
        for result in results:
            result.pop("bbox", None)
    return results


def _measure(
    coco: Callable, evaluator: Callable, truth_file: str | Path, results_file: str | Path, kind: str
) -> np.ndarray:
    with redirect_stdout(io.StringIO()):  # both tell what they do, at length
        truth = coco(str(truth_file))
        if 0 in truth.anns:
            raise ValueError(
                f"{truth_file} has an annotation with the id 0, for which COCO's evaluators would "
                "never find a match: number them from 1"
            )
        # Read anew for each, since both write into what they are given.
        results = _read_results(results_file, kind)
        # pycocotools' loadRes takes no empty list.
        run = evaluator(truth, truth.loadRes(results) if results else coco(), kind)
        run.evaluate()
        run.accumulate()
        run.summarize()
    figures = np.array(run.stats[: len(FIGURES)], dtype=float)
    return np.where(figures < 0, np.nan, figures)
