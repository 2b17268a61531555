# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import logging
import os.path as osp
from array import array
from collections.abc import Iterator, Sequence

import numpy as np
from mmdet.datasets import BaseDetDataset
from mmdet.registry import DATASETS
from mmengine.logging import print_log

from mal_mmdet.labeling import check_annotations, has_mask, image_file, open_coco
from mal_mmdet.progress import track

OVERHANG = 2.0  # pixels that a box may end outside its image without anybody's doubt
MANY = 0.05  # of the boxes


@DATASETS.register_module()
class CocoBoxDataset(BaseDetDataset):
    """The boxes of a COCO file, and nothing else of it.

    Unlike ``CocoDataset`` it keeps the id and place of every annotation, takes the classes from
    the file if ``metainfo`` names none, says which annotations it cannot use and why, and never
    reads a mask: an annotation file with masks trains the same network as one without. It has no
    use for ``filter_cfg``; see ``min_side`` of :class:`BoxCropDataset`. Reading takes some 350
    bytes of memory a box at the peak, however long the file's annotations are.

    Args:
        path_parts: So many last parts of a ``file_name`` make up the path under
            ``data_prefix``; all if not given. Objects365 v2 needs 2, since its
            ``images/v1/patch8/x.jpg`` lies in ``patch8/x.jpg``.
        detections: COCO results file of a detector, whose boxes take the place of the
            annotations.
        only_missing: Whether to leave out annotations that have a mask, whatever it is.
        allow_outside: Whether images may lie outside ``data_prefix``, see :func:`leaves_folder`.
        show_progress: Whether to show how far reading is.
    """

    def __init__(
        self,
        *args,
        path_parts: int | None = None,
        detections: str | None = None,
        only_missing: bool = False,
        allow_outside: bool = False,
        show_progress: bool = True,
        **kwargs,
    ) -> None:
        self.path_parts = path_parts
        self.detections = detections
        self.only_missing = only_missing
        self.allow_outside = allow_outside
        self.show_progress = show_progress
        super().__init__(*args, **kwargs)

    def load_data_list(self) -> Sequence[dict]:
        """One entry an image that has boxes.

        ``instances`` hold ``bbox`` (x0, y0, x1, y1), ``bbox_label``, ``ignore_flag`` (crowd),
        ``ann_id`` and ``ann_index``, the place in the file, and the ``score`` of a detection.

        Raises:
            FileNotFoundError, ValueError: As :func:`mal_mmdet.labeling.open_coco`; or ``metainfo``
                names a class that the file does not have.
        """
        coco = open_coco(self.ann_file, self.detections)
        categories = coco["categories"]
        names = [category["name"] for category in categories]
        if chosen := self._metainfo.get("classes"):
            if unknown := [name for name in chosen if name not in names]:
                raise ValueError(
                    f"metainfo.classes names {unknown}, but the categories of {self.ann_file} are "
                    f"{names}"
                )
            places = {name: i for i, name in enumerate(chosen)}
            labels = {c["id"]: places[c["name"]] for c in categories if c["name"] in places}
        else:
            self._metainfo["classes"] = tuple(names)
            labels = {category["id"]: i for i, category in enumerate(categories)}
        table = _BoxTable(coco["images"], self)
        problems = []
        total = len(coco["annotations"])
        checked = check_annotations(coco, bool(self.detections), self.allow_outside)
        for i, ann, problem in track(
            checked, "reading boxes", "boxes", total, disable=not self.show_progress
        ):
            if self.only_missing and has_mask(ann):
                continue
            if problem:
                missing = i if self.detections else "without id"
                name = ann.get("id", missing) if isinstance(ann, dict) else missing
                problems.append((i, name, problem))
            elif ann["category_id"] in labels:
                table.add(i, ann, labels[ann["category_id"]])
        if problems:
            self._warn(problems, total)
        table.group()
        for doubt in table.doubts():
            print_log(
                f"{doubt} of {self.detections or self.ann_file}. Expected are x, y, width and "
                "height in pixels, of the images as they are",
                logger="current",
                level=logging.WARNING,
            )
        if not len(table):
            self.serialize_data = False  # MMEngine cannot serialize an empty list
        return table

    def _warn(self, problems: list[tuple[int, object, str]], total: int) -> None:
        lines = [
            f"  annotation {_shown(name)} (annotations[{i}]): {text}" for i, name, text in problems
        ]
        if len(lines) > 10:
            lines[10:] = [f"  and {len(lines) - 10} more"]
        print_log(
            f"{len(problems)} of {total} annotations in {self.detections or self.ann_file} cannot "
            "be used and are left out:\n" + "\n".join(lines),
            logger="current",
            level=logging.WARNING,
        )


def _shown(name: object) -> str:
    """An id for a log: numbers and words as they are, else what it is made of."""
    plain = isinstance(name, str) and name.isprintable() and len(name) <= 40
    return name if plain else ascii(name)[:40]


class _BoxTable(Sequence):
    """The data list in columns: MMEngine serialises it without ever having it as objects."""

    def __init__(self, images: list[dict], dataset: CocoBoxDataset) -> None:
        self._images = images
        self._dataset = dataset
        self._positions = {image["id"]: i for i, image in enumerate(images)}
        self._rows: dict[int, int] = {}  # position of an image → its place in this list
        self._ids: list = []
        self._scores: list | None = [] if dataset.detections else None
        self._row, self._index, self._label = array("q"), array("q"), array("q")
        self._crowd, self._bbox = array("b"), array("d")

    def add(self, index: int, ann: dict, label: int) -> None:
        """Adds an annotation; images are listed in the order in which they first occur."""
        position = self._positions[ann["image_id"]]
        self._row.append(self._rows.setdefault(position, len(self._rows)))
        self._index.append(index)
        self._label.append(label)
        self._crowd.append(bool(ann.get("iscrowd", 0)))
        self._bbox.extend(ann["bbox"])
        self._ids.append(index if self._scores is not None else ann["id"])
        if self._scores is not None:
            self._scores.append(ann["score"])

    def group(self) -> None:
        """Ends the adding: the boxes of each image, in their order, become neighbours."""
        rows = np.array(self._row, dtype=np.int64)
        self._order = np.argsort(rows, kind="stable")
        self._cuts = np.searchsorted(rows[self._order], np.arange(len(self._rows) + 1))
        self._listed = list(self._rows)

    def doubts(self) -> Iterator[str]:
        """What speaks against boxes being COCO's, though each alone might be."""
        bboxes = np.frombuffer(self._bbox).reshape(-1, 4)
        images = [self._images[position] for position in self._listed]
        sizes = np.array([(image["width"], image["height"]) for image in images]).reshape(-1, 2)
        limits = sizes[np.frombuffer(self._row, dtype=np.int64)] + OVERHANG
        beyond = int((bboxes[:, :2] + bboxes[:, 2:] > limits).any(1).sum())
        if beyond > MANY * len(bboxes):
            yield f"{beyond} of {len(bboxes)} boxes reach out of their images, as corners would,"
        if len(bboxes) and (bboxes[:, 2:] <= 1).all():
            yield "No box is larger than a pixel, as fractions of an image would be,"

    def clear(self) -> None:
        """Forgets everything, as MMEngine asks for after it has serialised the list."""
        for column in (self._row, self._index, self._label, self._crowd, self._bbox, self._ids):
            del column[:]
        self._images, self._listed, self._scores = [], [], []
        self._positions, self._rows = {}, {}
        self._order = self._cuts = np.zeros(0, dtype=np.int64)

    def __len__(self) -> int:
        return len(self._listed)

    def __getitem__(self, key: int | slice) -> dict | list[dict]:
        if isinstance(key, slice):
            return [self[i] for i in range(*key.indices(len(self)))]
        image = self._images[self._listed[key]]
        folder = self._dataset.data_prefix.get("img", "")
        return dict(
            img_id=image["id"],
            img_path=osp.join(folder, image_file(image, self._dataset.path_parts)),
            height=image["height"],
            width=image["width"],
            instances=[
                self._instance(i)
                for i in self._order[self._cuts[key] : self._cuts[key + 1]].tolist()
            ],
        )

    def _instance(self, i: int) -> dict:
        x, y, w, h = self._bbox[4 * i : 4 * i + 4]
        instance = dict(
            bbox=[x, y, x + w, y + h],
            bbox_label=self._label[i],
            ignore_flag=self._crowd[i],
            ann_id=self._ids[i],
            ann_index=self._index[i],
        )
        if self._scores is not None:
            instance["score"] = self._scores[i]
        return instance
