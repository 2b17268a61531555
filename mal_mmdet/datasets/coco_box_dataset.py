# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import logging
import os.path as osp

from mmdet.datasets import BaseDetDataset
from mmdet.registry import DATASETS
from mmengine.logging import print_log

from mal_mmdet.labeling import find_problems, image_file, read_boxes


@DATASETS.register_module()
class CocoBoxDataset(BaseDetDataset):
    """The boxes of a COCO file, and nothing else of it.

    Unlike ``CocoDataset`` it keeps the id and place of every annotation, takes the classes from
    the file, says which annotations it cannot use and why, and never reads a mask: an
    annotation file with masks trains the same network as one without.

    Args:
        path_parts: So many last parts of a ``file_name`` make up the path under
            ``data_prefix``; all if not given. Objects365 v2 needs 2, since its
            ``images/v1/patch8/x.jpg`` lies in ``patch8/x.jpg``.
        detections: COCO results file of a detector, whose boxes take the place of the
            annotations.
    """

    def __init__(
        self, *args, path_parts: int | None = None, detections: str | None = None, **kwargs
    ) -> None:
        self.path_parts = path_parts
        self.detections = detections
        super().__init__(*args, **kwargs)

    def load_data_list(self) -> list[dict]:
        """One entry an image that has boxes.

        ``instances`` hold ``bbox`` (x0, y0, x1, y1), ``bbox_label``, ``ignore_flag`` (crowd),
        ``ann_id`` and ``ann_index``, the place in the file, and the ``score`` of a detection.

        Raises:
            FileNotFoundError, ValueError: As :func:`mal_mmdet.labeling.read_boxes`.
        """
        coco = read_boxes(self.ann_file, self.detections)
        self._metainfo["classes"] = tuple(c["name"] for c in coco["categories"])
        labels = {c["id"]: i for i, c in enumerate(coco["categories"])}
        infos = {image["id"]: image for image in coco["images"]}
        images: dict = {}
        problems = find_problems(coco, scored=bool(self.detections))
        for i, ann in enumerate(coco["annotations"]):
            if i in problems:
                continue
            info = infos[ann["image_id"]]
            image = images.setdefault(
                info["id"],
                dict(
                    img_id=info["id"],
                    img_path=osp.join(
                        self.data_prefix.get("img", ""), image_file(info, self.path_parts)
                    ),
                    height=info["height"],
                    width=info["width"],
                    instances=[],
                ),
            )
            x, y, w, h = ann["bbox"]
            instance = dict(
                bbox=[x, y, x + w, y + h],
                bbox_label=labels[ann["category_id"]],
                ignore_flag=int(bool(ann.get("iscrowd", 0))),
                ann_id=ann["id"],
                ann_index=i,
            )
            if self.detections:
                instance["score"] = ann["score"]
            image["instances"].append(instance)
        if problems:
            self._warn(problems, coco["annotations"])
        if not images:
            self.serialize_data = False  # MMEngine cannot serialize an empty list
        return list(images.values())

    def _warn(self, problems: dict[int, str], annotations: list) -> None:
        lines = []
        for i, problem in list(problems.items())[:10]:
            ann = annotations[i]
            name = ann.get("id", "without id") if isinstance(ann, dict) else "without id"
            lines.append(f"  annotation {name} (annotations[{i}]): {problem}")
        if len(problems) > 10:
            lines.append(f"  and {len(problems) - 10} more")
        file = self.detections or self.ann_file
        print_log(
            f"{len(problems)} of {len(annotations)} annotations in {file} cannot be used and are "
            "left out:\n" + "\n".join(lines),
            logger="current",
            level=logging.WARNING,
        )
