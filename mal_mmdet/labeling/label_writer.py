# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
import os
import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from math import floor
from pathlib import Path
from typing import Any

import numpy as np
from mmdet.registry import METRICS
from mmengine.dist import barrier, is_main_process
from mmengine.evaluator import BaseMetric
from mmengine.logging import print_log
from pycocotools import mask as mask_utils

from mal_mmdet.progress import track

from .coco_file import (
    bbox_problem,
    check_annotations,
    find_broken_images,
    has_mask,
    is_finite,
    open_coco,
    replacing,
    without_nan,
)
from .json_stream import ListWriter, write_around
from .paste import arrived, encode_window, mask_windows
from .polygons import mask_bbox, mask_problem, mask_to_polygons, segmentation_to_mask, to_rle
from .shards import LabelShards, common_fingerprint, file_sha256

MASK_FORMATS = ("rle", "polygon")
"""What ``segmentation`` may be."""

LOW_QUALITY = ("keep", "ignore", "drop")
"""What may become of a mask whose quality is too low; ``ignore`` marks it as crowd."""

RESULT_FIELDS = ("segmentation", "mask_quality")  # of a detection; the score is its own
SHARD_BOXES = 5000
SHARD_SECONDS = 60.0  # the most work that a kill can cost


@METRICS.register_module()
class LabelWriter(BaseMetric):
    """Writes the predicted masks into a copy of the annotation file they were made for.

    While the test loop runs, each rank pastes and encodes masks in threads beside the prediction
    and writes them to :class:`LabelShards` in ``<out_file>.shards``. In the end the main rank
    merges the shards, annotation by annotation, and removes them, unless some images could not be
    used: then they stay for a run that resumes when those are mended. Beside the data set nothing
    needs more memory for more boxes, but for some 160 bytes a box in the merge.

    Every annotation keeps its place and all that it had; ``segmentation`` becomes the mask as
    compressed RLE or polygons, ``area`` the mask's, ``source`` is ``mal`` and ``mask_quality`` an
    estimate of the mask's IoU with the truth, see :func:`mask_quality`; ``iscrowd`` becomes 0 or 1,
    as evaluators need it. Crowd annotations are
    not labeled: one without a mask gets its box as RLE, so that stock loaders can read it.
    Annotations that could not be labeled are left out of the label file, since no loader could
    use them, and stand whole in ``<out_file>.report.json`` with the reason (NaN as null there); so
    do images that no loader could use, with boxes or without.

    Args:
        ann_file: The COCO file with the boxes.
        out_file: The COCO file to write.
        detections: COCO results file whose boxes were labeled in place of the annotations. What
            is written is then a results file too: every entry as it was, its mask, and its
            ``mask_quality``.
        mask_format: ``rle``, or ``polygon`` for what ignores RLE, see :func:`mask_to_polygons`;
            results files are always RLE, as pycocotools scores nothing else.
        only_missing: Whether annotations with a mask keep it, with ``source`` ``human`` unless
            they name another; the data set has to leave them out too.
        min_quality: Masks with a lower ``mask_quality`` are of low quality.
        low_quality: What becomes of those: ``keep``; ``ignore`` marks them as crowd, so that
            detectors do not learn from them; ``drop`` leaves them out of the file.
        allow_outside: Whether images may lie outside their folder, see :func:`leaves_folder`; the
            data set has to allow it too.
        info: What is added to the file's ``info`` under ``mal_mmdet``.
        fingerprint: Names and hashes of all that the masks depend on, see
            :meth:`LabelShards.open`.
        resume: Whether to go on with the shards that an interrupted run has left.

    Raises:
        ValueError: Unknown format or treatment, or one that a results file cannot have.
        RuntimeError: The shards belong to another run, see :meth:`LabelShards.open`, or ranks do
            not label the same, see :func:`common_fingerprint`.
    """

    default_prefix = "labels"

    def __init__(
        self,
        ann_file: str,
        out_file: str,
        detections: str | None = None,
        mask_format: str = "rle",
        only_missing: bool = False,
        min_quality: float = 0.0,
        low_quality: str = "keep",
        allow_outside: bool = False,
        info: dict[str, Any] | None = None,
        fingerprint: dict[str, str] | None = None,
        resume: bool = False,
        **kwargs,
    ) -> None:
        super().__init__(**kwargs)
        if mask_format not in MASK_FORMATS:
            raise ValueError(f"mask_format is {mask_format!r}, expected one of {MASK_FORMATS}")
        if low_quality not in LOW_QUALITY:
            raise ValueError(f"low_quality is {low_quality!r}, expected one of {LOW_QUALITY}")
        if detections and mask_format != "rle":
            raise ValueError("a results file has its masks as RLE; leave mask_format at 'rle'")
        if detections and (only_missing or low_quality == "ignore"):
            raise ValueError(
                "a results file has no crowds and no masks of its own: it takes neither "
                "only_missing nor low_quality='ignore'"
            )
        self.mask_format = mask_format
        self.detections = detections
        self.ann_file = ann_file
        self.out_file = out_file
        self.only_missing = only_missing
        self.min_quality = min_quality
        self.low_quality = low_quality
        self.allow_outside = allow_outside
        self.info = info
        self.shards = LabelShards(shard_folder(out_file), common_fingerprint(fingerprint or {}))
        if is_main_process():
            damaged = self.shards.open(resume)
            if damaged:
                print_log(f"{damaged} damaged shards are labeled again", logger="current")
        barrier()
        self._pool = ThreadPoolExecutor(min(4, os.cpu_count() or 1))
        self._pending: deque[tuple[list[int], list[Future]]] = deque()
        self._start_shard()

    def process(self, data_batch: dict, data_samples: Sequence[dict]) -> None:
        """Hands the masks of a batch to the threads, and writes a shard when enough are done.

        Args:
            data_batch: Not used.
            data_samples: Predictions of :class:`MaskAutoLabeler` for whole images, as dictionaries.
        """
        samples = [sample["sample_idx"] for sample in data_samples]
        futures = [self._pool.submit(self._labels, sample) for sample in data_samples]
        self._pending.append((samples, futures))
        while self._pending and (
            len(self._pending) > 8 or all(future.done() for future in self._pending[0][1])
        ):
            self._collect()

    def _labels(self, sample: dict) -> list[tuple[int, dict]]:
        labels = [(i, dict(problem=problem)) for i, problem in sample.get("failed", {}).items()]
        pred, shape = arrived(sample["pred_instances"]), sample["ori_shape"]
        for index, quality, window in zip(
            pred["ann_indices"].tolist(), pred["mask_quality"].tolist(), mask_windows(pred, shape)
        ):
            if window is None:
                labels.append((index, dict(problem="the network's prediction is not finite")))
                continue
            if self.mask_format == "polygon":
                segmentation = [
                    [float(v + (window.x0, window.y0)[k % 2]) for k, v in enumerate(polygon)]
                    for polygon in mask_to_polygons(window.mask)
                ]
            else:
                segmentation = encode_window(window, shape)
            label = dict(segmentation=segmentation, area=int(np.count_nonzero(window.mask)))
            labels.append((index, label | dict(mask_quality=round(quality, 4), source="mal")))
        return labels

    def _collect(self) -> None:
        """Waits for the oldest batch and writes a shard if that is due; batches stay whole."""
        for sample, future in zip(*self._pending.popleft()):
            labels = future.result()
            if any("problem" in label for _, label in labels):
                self.shards.write([sample], labels, failed=True)
            else:
                self._samples.append(sample)
                self._finished += labels
        late = time.monotonic() - self._started > SHARD_SECONDS
        if late or len(self._finished) >= SHARD_BOXES:
            self._write_shard()

    def _write_shard(self) -> None:
        if self._samples:
            self.shards.write(self._samples, self._finished)
        self._start_shard()

    def _start_shard(self) -> None:
        self._samples: list[int] = []
        self._finished: list[tuple[int, dict]] = []
        self._started = time.monotonic()

    def flush(self) -> None:
        """Waits for the threads and writes all that is finished."""
        while self._pending:
            self._collect()
        self._write_shard()

    def evaluate(self, size: int) -> dict[str, int]:
        """Ends the last shard, waits for the other ranks, and merges on the main one.

        Args:
            size: Number of samples of the data set.

        Returns:
            How many boxes were ``labeled`` and how many ``failed``; nothing on other ranks, which
            need not wait for the merge.

        Raises:
            RuntimeError: Some samples have not been labeled by any rank.
        """
        self.flush()
        self._pool.shutdown()
        barrier()
        if not is_main_process():
            return {}
        failed = self.shards.failed_samples()
        missing = size - len(failed | self.shards.finished_samples())
        if missing:
            raise RuntimeError(
                f"the labels of {missing} of {size} images are not in {self.shards.folder}; run "
                "the same command with --resume"
            )
        counts = self.compute_metrics([])
        if self.min_quality:
            became = dict(keep="kept", ignore="marked as crowd", drop="left out")
            print_log(
                f"{counts['low_quality']} masks have a mask_quality under {self.min_quality} and "
                f"are {became[self.low_quality]}",
                logger="current",
            )
        if failed:
            print_log(
                f"{len(failed)} images could not be used. When they are mended, the same command "
                f"with --resume labels them; {self.shards.folder} is kept for that",
                logger="current",
            )
        else:
            self.shards.remove()
        return {f"{self.prefix}/{name}": count for name, count in counts.items()}

    def compute_metrics(self, results: list) -> dict[str, int]:
        """Merges the shards to label file and report, in the order of the input file.

        Raises:
            RuntimeError: The input file is not the one any more whose boxes were labeled.
        """
        for name, path in (("boxes", self.ann_file), ("detections", self.detections)):
            before = self.shards.fingerprint.get(name)
            if before and file_sha256(path) != before:  # labels belong to places in the file
                raise RuntimeError(
                    f"{path} has been changed since labeling began, so that nobody knows whose the "
                    f"masks are. Nothing was written, and they stay in {self.shards.folder}: put "
                    "the file of before in its place and run the same command with --resume"
                )
        coco = open_coco(self.ann_file, self.detections)
        if self.info is not None:
            info = coco.get("info")
            info = info if isinstance(info, dict) else {}
            coco = {"info": None, **coco} | dict(info={**info, "mal_mmdet": self.info})
        try:
            with (
                replacing(report_path(self.out_file), self.shards.folder) as report_name,
                replacing(self.out_file, self.shards.folder) as out_name,
                open(report_name, "w", encoding="utf-8") as report,
                open(out_name, "w", encoding="utf-8") as out,
            ):
                broken = find_broken_images(coco, self.allow_outside)
                by_id = {image["id"]: image for image in coco["images"]}
                images = [dict(image=by_id[i], problem=text) for i, text in broken.items()]
                report.write("{")
                if images:
                    print_log(f"{len(images)} images are left out, see the report", "current")
                    report.write(f'"images": {json.dumps(without_nan(images))}, ')
                report.write('"failed": ')
                failed = ListWriter(report)
                if self.detections:
                    labels = ListWriter(out)
                    counts = self._merge(coco, labels, failed)
                    labels.close()
                else:
                    merge = partial(self._merge, coco, failed=failed)
                    # No loader takes a file with an image that it could not use.
                    sound = [image for image in coco["images"] if image["id"] not in broken]
                    counts = write_around(out, coco | dict(images=sound), "annotations", merge)
                failed.close()
                rest = {name: count for name, count in counts.items() if name != "failed"}
                report.write(", " + json.dumps(rest)[1:])
        except OSError as error:
            raise self.shards.interrupted(error) from error
        return counts

    def _merge(self, coco: dict[str, Any], out: ListWriter, failed: ListWriter) -> dict[str, int]:
        total = len(coco["annotations"])
        labels = self.shards.labels(total)
        images = {image["id"]: image for image in coco["images"]}
        counts = dict(labeled=0, failed=0, low_quality=0)
        checked = check_annotations(
            coco, bool(self.detections), self.allow_outside, self.only_missing
        )
        for i, ann, problem in track(checked, "writing labels", "boxes", total):
            label = labels.get(i)
            if label and not problem:
                problem = label.get("problem")
            elif not problem:
                image = images[ann["image_id"]]
                human = self.only_missing and has_mask(ann)
                if human:
                    ann.setdefault("source", "human")
                elif not ann.get("iscrowd"):
                    problem = "the config's data set left it out"
                problem = problem or complete_annotation(ann, image)
                if human and not problem and self.mask_format == "polygon":
                    if polygons := _as_polygons(ann, image):
                        ann["segmentation"] = polygons
                    else:
                        problem = "its mask has not one pixel"
            if problem:
                if not counts["failed"]:
                    print_log(f"some boxes cannot be labeled, the first: {problem}", "current")
                counts["failed"] += 1
                name = (
                    ann.get("id", i if self.detections else None) if isinstance(ann, dict) else None
                )
                failed.add(without_nan(dict(id=name, index=i, problem=problem, annotation=ann)))
                continue
            if label:
                counts["labeled"] += 1
                kept = RESULT_FIELDS if self.detections else label
                ann.update({key: label[key] for key in kept})
                if label["mask_quality"] < self.min_quality:
                    counts["low_quality"] += 1
                    if self.low_quality == "drop":
                        continue
                    if self.low_quality == "ignore":
                        ann["iscrowd"] = 1
            if not self.detections:
                ann["iscrowd"] = int(bool(ann.get("iscrowd")))  # evaluators need a number
            out.add(ann)
        return counts


def _as_polygons(ann: dict, image: dict) -> dict | list:
    """A human mask for loaders that ignore RLE; a crowd stays RLE, as all expect it."""
    segmentation = ann["segmentation"]
    if ann.get("iscrowd") or not isinstance(segmentation, dict):
        return segmentation
    mask = segmentation_to_mask(segmentation, image["height"], image["width"])
    return [[float(v) for v in polygon] for polygon in mask_to_polygons(mask)]


def report_path(out_file: str | Path) -> Path:
    """Where the report of a label file stands: ``labels.json`` → ``labels.json.report.json``."""
    return Path(f"{out_file}.report.json")


def shard_folder(out_file: str | Path) -> Path:
    """Folder of the shards of a label file at work: ``labels.json`` → ``labels.json.shards``."""
    return Path(f"{out_file}.shards")


def encode_mask(mask: np.ndarray) -> dict:
    """Compressed RLE of a mask (H, W), with ``counts`` as text, ready for JSON."""
    rle = mask_utils.encode(np.asfortranarray(mask, dtype=np.uint8))
    return dict(size=rle["size"], counts=rle["counts"].decode("ascii"))


def _area(ann: dict, image: dict) -> float:
    if has_mask(ann):
        rle = to_rle(ann["segmentation"], image["height"], image["width"])
        return int(mask_utils.area(rle))
    return ann["bbox"][2] * ann["bbox"][3]


def complete_annotation(ann: dict, image: dict) -> str | None:
    """Gives a crowd, or what has a mask, all that stock loaders need: mask, box and area.

    Args:
        ann: COCO annotation; a mask stands in for a box that is missing or cannot be one, the box
            for a mask, and the mask's area for one that is no number above 0, with which loaders
            leave an annotation out. Changed in place.
        image: Its image's entry in the COCO file.

    Returns:
        What keeps loaders from reading the mask that it has or would get; None if nothing does.
    """
    if has_mask(ann):
        if problem := mask_problem(ann["segmentation"], image):
            return problem
        if bbox_problem(ann.get("bbox"), image["width"], image["height"]):
            ann["bbox"] = mask_bbox(ann["segmentation"], image)
            if not all(ann["bbox"][2:]):
                return "its mask has not one pixel, and it has no box"
    if not is_finite(ann.get("area")) or ann["area"] <= 0:
        ann["area"] = _area(ann, image)
    if has_mask(ann):
        return None
    x, y, w, h = ann["bbox"]
    if problem := mask_problem([[x, y, x + w, y, x + w, y + h, x, y + h]], image):
        return problem
    height, width = image["height"], image["width"]
    # The pixels whose centres are in the box.
    x0, x1 = (floor(min(max(side, 0), width) + 0.5) for side in (x, x + w))
    y0, y1 = (floor(min(max(side, 0), height) + 0.5) for side in (y, y + h))
    rle = mask_utils.frPyObjects(np.array([[x0, y0, x1 - x0, y1 - y0]], float), height, width)[0]
    ann["segmentation"] = dict(size=rle["size"], counts=rle["counts"].decode("ascii"))
    return None
