# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import errno
import logging
import math
import os.path as osp
import random
import time
from array import array
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from mmdet.registry import DATASETS
from mmdet.structures import DetDataSample
from mmdet.structures.bbox import HorizontalBoxes
from mmengine.dataset import Compose
from mmengine.logging import print_log
from mmengine.structures import InstanceData
from torch.utils.data import Dataset

from mal_mmdet.labeling import open_image

from .transforms.formatting import no_crops

RETRY_SECONDS = 1.0


@DATASETS.register_module()
class BoxCropDataset(Dataset):
    """Turns any mmdet data set into crops of its boxes.

    For training a sample is one box. With ``group_by_image``, for labeling, a sample is one
    image with the crops of all its boxes, so that the image is read once. Boxes to ignore are
    left out of both: ``ignore_flag`` (crowds, and what PASCAL VOC calls difficult) and
    ``is_group_of`` of OpenImages, a box around several objects.

    The wrapped data set's own pipeline only loads the image. Of its ``instances`` nothing but
    ``bbox``, ``bbox_label``, ``ignore_flag``, a detection's ``score`` and the annotation's id and
    index is handed on.

    Args:
        dataset: Config of an mmdet data set, whose pipeline ends with the image in ``img``.
        pipeline: Transforms of one box, from expansion to packing.
        min_area: Boxes of this area in px², or less, are left out.
        min_side: Boxes with a side of this many pixels, or less, are left out.
        group_by_image: Whether a sample is an image instead of a box.

    Attributes:
        boxes_per_sample: Number of boxes in each sample, int64, where a sample is an image.

    Raises:
        ValueError: No box is left to train on.
    """

    def __init__(
        self,
        dataset: dict,
        pipeline: Sequence[dict],
        min_area: float = 0.0,
        min_side: float = 0.0,
        group_by_image: bool = False,
    ) -> None:
        self.dataset = DATASETS.build(dataset)
        self.dataset.full_init()
        self.pipeline = Compose(pipeline)
        self.group_by_image = group_by_image
        self._read: tuple[int, dict] = (-1, {})  # the last image, and its index
        images, instances, number = array("q"), array("q"), 0
        for i in range(len(self.dataset)):
            for j, instance in enumerate(self.dataset.get_data_info(i)["instances"]):
                width, height = box_sides(instance["bbox"])
                ignored = instance.get("ignore_flag", 0) or instance.get("is_group_of", False)
                number += not ignored
                if not ignored and width * height > min_area and min(width, height) > min_side:
                    images.append(i)
                    instances.append(j)
        # One row a box: index of the image and of the instance within it.
        self.boxes = np.array([images, instances], dtype=np.int64).T
        if group_by_image:
            # Sample i has the rows cuts[i] to cuts[i + 1].
            starts = np.flatnonzero(np.diff(self.boxes[:, 0], prepend=-1))
            self.cuts = np.append(starts, len(self.boxes))
            self.boxes_per_sample = np.diff(self.cuts)
        limits = f"an area over min_area={min_area} and sides over min_side={min_side} pixels"
        if not len(self.boxes) and not group_by_image:
            raise ValueError(
                f"no box is left to train on: of {number} usable boxes in {len(self.dataset)} "
                f"images none has {limits}; warnings say which boxes are not usable, and why"
            )
        if len(self.boxes) < number:
            print_log(
                f"{len(self.boxes)} of {number} boxes are used: those with {limits}", "current"
            )

    @property
    def metainfo(self) -> dict:
        """Meta information of the wrapped data set."""
        return self.dataset.metainfo

    def full_init(self) -> None:
        """Does nothing: MMEngine's wrappers ask for it, and all has been read."""

    def __len__(self) -> int:
        return len(self.boxes_per_sample) if self.group_by_image else len(self.boxes)

    def __getitem__(self, index: int | tuple[int, int]) -> dict:
        """A box's views, or an image's crops.

        Args:
            index: Index of the sample, or a pair of index and seed as
                :class:`SeededSampler` deals them: the sample then depends on nothing else.

        Returns:
            What the pipeline makes of one box; with ``group_by_image``, ``inputs`` (N, 3, S, S),
            or (N, V, 3, S, S) where a box has V crops, and a ``data_samples`` whose
            ``gt_instances`` holds N boxes, ``bboxes`` now in the image frame, and whose
            ``sample_idx`` is the index. An image that cannot be used gives N = 0, and ``failed``
            says what is wrong for the index of each of its annotations.

        Raises:
            RuntimeError: The image of a training box cannot be read, not at a second attempt
                either.
        """
        if self.group_by_image:
            return self._image_sample(index)
        index, seed = index if isinstance(index, tuple) else (index, None)
        image, instance = self.boxes[index]
        if self._read[0] != image:  # a neighbour in the order may be of the same image
            self._read = image, self._load(image)
        with sample_seed(seed):
            return self.pipeline(self._box_results(self._read[1], instance))

    def _load(self, image: int) -> dict:
        info = self.dataset.get_data_info(image)
        expected = info.get("height"), info.get("width")
        path, instances = info.get("img_path"), info["instances"]
        try:
            results = self._read_again_if_it_fails(image, path)
        except Exception as error:  # every image backend raises its own kinds
            ids = [instance["ann_id"] for instance in instances if "ann_id" in instance]
            listed = f"; its annotations are {ids[:5]}{' …' if len(ids) > 5 else ''}" if ids else ""
            raise RuntimeError(
                f"image {path} cannot be read ({type(error).__name__}: {error}){listed}"
            ) from error
        found = results["img"].shape[:2]
        if None not in expected and found != expected:
            turned = found == expected[::-1]
            raise RuntimeError(
                f"image {path} has {found[1]}×{found[0]} pixels, but its annotation file says "
                f"{expected[1]}×{expected[0]}: the boxes would not fit"
                + (". It is loaded the way that its EXIF orientation turns it" if turned else "")
            )
        return results

    def _read_again_if_it_fails(self, image: int, path: str | None) -> dict:
        try:
            return self._read_image(image, path)
        except OSError as error:
            if error.errno in (None, errno.ENOENT):  # no image, or no file: nothing that passes
                raise
            # File systems of clusters have bad moments.
            text = f"reading image {path} failed ({type(error).__name__}: {error}); trying again"
            print_log(text, logger="current", level=logging.WARNING)
            time.sleep(RETRY_SECONDS)
            return self._read_image(image, path)

    def _read_image(self, image: int, path: str | None) -> dict:
        if isinstance(path, str) and osp.exists(path):  # not so if a server has it
            open_image(path).close()  # or the decoder might fill the memory
        return self.dataset[image]

    def _box_results(self, results: dict, instance: int) -> dict:
        info = results["instances"][instance]
        bbox = np.array([info["bbox"]], dtype=np.float32)
        box = dict(
            img=results["img"],
            img_path=results.get("img_path"),
            img_id=results.get("img_id"),
            ori_shape=results["img"].shape[:2],
            img_shape=results["img"].shape[:2],
            gt_bboxes=HorizontalBoxes(bbox),
            gt_bboxes_labels=np.array([info["bbox_label"]], dtype=np.int64),
            ori_bbox=bbox[0],
            area=math.prod(box_sides(info["bbox"])),
        )
        return box | {key: info[key] for key in ("ann_id", "ann_index", "score") if key in info}

    def _image_sample(self, index: int) -> dict:
        rows = self.boxes[self.cuts[index] : self.cuts[index + 1]]
        try:
            results = self._load(rows[0, 0])
        except RuntimeError as error:
            info = self.dataset.get_data_info(rows[0, 0])
            indices = [info["instances"][j].get("ann_index", j) for j in rows[:, 1]]
            failed = {i: str(error) for i in indices}
            shape = info.get("height", 0), info.get("width", 0)
            metainfo = {key: info.get(key) for key in ("img_id", "img_path")}
            metainfo |= dict(failed=failed, ori_shape=shape, img_shape=shape, sample_idx=index)
            return no_crops(metainfo)
        boxes = [self.pipeline(self._box_results(results, j)) for j in rows[:, 1]]
        samples = [box["data_samples"] for box in boxes]
        metainfo = samples[0].metainfo | dict(failed={}, sample_idx=index)
        sample = DetDataSample(metainfo=metainfo)
        sample.gt_instances = InstanceData.cat([s.gt_instances for s in samples])
        # A sample that is an image has its boxes in the image frame, as mmdet's tools expect.
        sample.gt_instances.bboxes = sample.gt_instances.ori_bboxes
        return dict(inputs=torch.stack([box["inputs"] for box in boxes]), data_samples=sample)


def box_sides(bbox: Sequence[float]) -> tuple[float, float]:
    """Width and height in pixels of (x0, y0, x1, y1).

    To the precision of float32: (x + w) − x is not quite w, and a box whose area is a limit of
    sizes would be on either side of it, depending on where it lies.
    """
    x0, y0, x1, y1 = bbox
    return float(np.float32(x1 - x0)), float(np.float32(y1 - y0))


@contextmanager
def sample_seed(seed: int | None) -> Iterator[None]:
    """Seeds the random states that transforms draw from, and puts the old ones back."""
    if seed is None:
        yield
        return
    states = np.random.get_state(), random.getstate()
    np.random.seed(seed)
    random.seed(seed)
    try:
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            yield
    finally:
        np.random.set_state(states[0])
        random.setstate(states[1])
