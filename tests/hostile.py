# SPDX-License-Identifier: Apache-2.0
"""Labels a COCO file that anybody may have written, and holds what comes out to what is promised.

Property-based tests and the fuzzer share this.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from unittest.mock import patch

import cv2
import numpy as np
import torch
from mmdet.registry import DATASETS, MODELS, TRANSFORMS
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from pycocotools.coco import COCO

from mal_mmdet.labeling import LabelWriter, read_coco, report_path, shard_folder

SIZE = WIDTH, HEIGHT = 24, 16
NAMES = ("a.png", "b.jpg", "sub/c.png")


def refuse(name: str) -> None:
    raise ValueError(f"{name} is no JSON")


class Labeler:
    """Labels files with a network of a few weights, without a runner and its seconds of start.

    Args:
        folder: An empty folder to work in.
        cfg: Config of the network.
    """

    def __init__(self, folder: Path, cfg: Config) -> None:
        self.cfg = cfg
        torch.manual_seed(0)
        self.model = MODELS.build(cfg.model)
        self.model.eval()
        self.model.paste_masks = False  # as in labeling
        self.images = folder / "images"
        (self.images / "sub").mkdir(parents=True)
        rng = np.random.default_rng(0)
        for name in NAMES:
            pixels = rng.integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
            cv2.imwrite(str(self.images / name), pixels)
        content = (self.images / "b.jpg").read_bytes()
        (self.images / "cut.jpg").write_bytes(content[: len(content) // 2])
        (self.images / "empty.png").touch()
        (self.images / "text.png").write_text("no image")
        os.mkfifo(self.images / "pipe.png")  # to open it would wait for ever
        (self.images / "zero.png").symlink_to("/dev/zero")
        cv2.imwrite(str(folder / "outside.png"), np.zeros((HEIGHT, WIDTH, 3), np.uint8))
        self.boxes, self.results = folder / "boxes.json", folder / "results.json"
        self.out = folder / "labels.json"

    def label(self, content: bytes, detections: bytes | None = None, **options) -> int | None:
        """Labels what is in a file and checks the result.

        Args:
            content: Of the file.
            detections: Content of a results file whose boxes are labeled instead.
            options: ``only_missing``, ``allow_outside``, ``mask_format``.

        Returns:
            Number of masks; None if it was refused, with one error that names the file.
        """
        self.boxes.write_bytes(content)
        if detections is not None:
            self.results.write_bytes(detections)
            options["detections"] = str(self.results)
        # To wait for the disk and for all of Python's garbage is no part of what is tested.
        with (
            patch("gc.collect"),
            patch("mal_mmdet.labeling.coco_file.sync"),
            patch("mal_mmdet.labeling.shards.sync"),
        ):
            try:
                self._label(**options)
            except ValueError as error:
                assert any(str(f) in str(error) for f in (self.boxes, self.results)), error
                assert len(str(error)) < 1000
                return None
            finally:
                shutil.rmtree(shard_folder(self.out), ignore_errors=True)
        if detections is not None:
            return self.check_results()
        return self.check(options.get("only_missing", False))

    def _label(self, mask_format: str = "rle", **options) -> None:
        loader = self.cfg.test_dataloader
        boxes = dict(
            loader.dataset.dataset,
            type="CocoBoxDataset",
            data_root="",
            ann_file=str(self.boxes),
            data_prefix=dict(img=str(self.images)),
            **options,
        )
        dataset = DATASETS.build(dict(loader.dataset, dataset=boxes))
        writer = LabelWriter(str(self.boxes), str(self.out), mask_format=mask_format, **options)
        try:
            for i in range(len(dataset)):
                batch = pseudo_collate([dataset[i]])
                samples = self.model.test_step(batch)
                writer.process(batch, [sample.to_dict() for sample in samples])
            writer.evaluate(len(dataset))
        finally:
            writer._pool.shutdown()
            writer.shards.release()

    def check_results(self) -> int:
        """Every detection is in one of the two files, and pycocotools loads the results."""
        report = json.loads(report_path(self.out).read_text(), parse_constant=refuse)
        found, before = json.loads(self.out.read_text()), json.loads(self.results.read_text())
        assert len(found) + len(report["failed"]) == len(before)
        assert len(found) == report["labeled"]
        if found:
            loaded = COCO(self.boxes).loadRes(found)
            assert all(loaded.annToMask(ann).any() for ann in loaded.dataset["annotations"])
        return report["labeled"]

    def check(self, only_missing: bool) -> int:
        """Every annotation is in one of the two files, and stock mmdet loads the labels."""
        report = json.loads(report_path(self.out).read_text(), parse_constant=refuse)
        before, labels = read_coco(self.boxes), read_coco(self.out)
        failed = report["failed"]
        assert all(entry["problem"] for entry in failed)
        assert len(labels["annotations"]) + len(failed) == len(before["annotations"])
        dropped = len(report.get("images", []))
        assert len(labels["images"]) + dropped == len(before["images"])
        for ann in labels["annotations"]:
            assert ann["iscrowd"] in (0, 1)
            assert ann["iscrowd"] or only_missing or ann["source"] == "mal"
        if any("file_name" not in image for image in labels["images"]):
            return report["labeled"]  # of LVIS, which mmdet reads by a class of its own
        stock = DATASETS.build(
            dict(
                type="CocoDataset",
                ann_file=str(self.out),
                data_prefix=dict(img=str(self.images)),
                metainfo=dict(classes=tuple(c["name"] for c in labels["categories"])),
                filter_cfg=dict(filter_empty_gt=True),
                serialize_data=False,
                pipeline=[],
            )
        )
        load_image = TRANSFORMS.build(dict(type="LoadImageFromFile"))
        load_masks = TRANSFORMS.build(dict(type="LoadAnnotations", with_mask=True))
        labeled = {ann["image_id"] for ann in labels["annotations"] if "mask_quality" in ann}
        for info in map(stock.get_data_info, range(len(stock))):
            shape = info["height"], info["width"]
            if info["img_id"] in labeled:  # images of crowds alone are not opened
                assert load_image(dict(info))["ori_shape"] == shape
            loaded = load_masks(dict(info, img_shape=shape, ori_shape=shape))
            assert loaded["gt_bboxes"].tensor.isfinite().all()
            masks = loaded["gt_masks"].masks
            assert len(masks) == len(info["instances"]) and set(np.unique(masks)) <= {0, 1}
        return report["labeled"]
