#!/usr/bin/env python
# SPDX-License-Identifier: Apache-2.0
"""Peak memory of loading boxes, labeling them and merging the shards, for files of two sizes.

Each file has ten boxes an image; the images are small and a few files serve them all. The network
is tiny. Every size runs in a process of its own.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import cv2
import numpy as np
import torch
from mmdet.registry import MODELS
from mmengine.config import Config
from mmengine.registry import init_default_scope
from rich.console import Console
from rich.table import Table

from mal_mmdet.apis import generate_labels
from mal_mmdet.datasets import BoxCropDataset
from mal_mmdet.labeling import LabelWriter
from mal_mmdet.progress import track

ROOT = Path(__file__).parents[2]
WIDTH, HEIGHT, BOXES_PER_IMAGE, FILES = 96, 64, 10, 50


def make_boxes(folder: Path, number: int) -> None:
    """Writes the images and ``boxes.json``, an annotation at a time and images mixed."""
    rng = np.random.default_rng(0)
    for i in range(FILES):
        img = rng.integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
        cv2.imwrite(str(folder / f"{i}.jpg"), img)
    images = number // BOXES_PER_IMAGE
    with open(folder / "boxes.json", "w", encoding="utf-8") as file:
        listed = [
            dict(id=i, file_name=f"{i % FILES}.jpg", width=WIDTH, height=HEIGHT)
            for i in range(images)
        ]
        file.write('{"categories": [{"id": 1, "name": "thing"}], "images": ')
        file.write(json.dumps(listed) + ', "annotations": [')
        for i in range(number):
            x, y, w, h = rng.uniform([0, 0, 8, 8], [40, 24, 50, 38]).round(2).tolist()
            ann = dict(id=i, image_id=i % images, category_id=1, bbox=[x, y, w, h])
            ann |= dict(area=round(w * h, 2), iscrowd=0)
            file.write((", " if i else "") + json.dumps(ann))
        file.write("]}")


def tiny_config(folder: Path) -> Config:
    """The demo's config with crops of 16 pixels and a network of a few hundred weights."""
    cfg = Config.fromfile(ROOT / "configs/mal/mal_vit-demo_1xb16_demo.py")
    arch = dict(embed_dims=16, num_layers=1, num_heads=1, feedforward_channels=16)
    cfg.merge_from_dict(
        {
            "work_dir": str(folder / "work"),
            "log_level": "WARNING",
            "model.network.backbone.arch": arch,
            "model.network.backbone.img_size": 16,
            "model.network.backbone.patch_size": 8,
            "model.network.decoder": dict(in_channels=16, channels=8),
            "model.flip_test": False,
            "model.crops_per_batch": 256,
            "test_dataloader.dataset.pipeline.1.size": 16,
        }
    )
    return cfg


def memory(field: str = "VmRSS") -> int:
    """Bytes of this process in memory (Linux)."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    line = next(line for line in status.splitlines() if line.startswith(field))
    return int(line.split()[1]) * 1024


def peak_memory(reset: bool = False) -> int:
    """Most bytes of this process in memory since the last reset."""
    peak = memory("VmHWM")
    if reset:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    return peak


def measure(number: int) -> None:
    """Labels ``number`` boxes in this process and prints peaks and seconds as JSON."""
    init_default_scope("mmdet")
    figures = {}
    merge, load = LabelWriter.compute_metrics, BoxCropDataset.__init__

    def measured_load(self: BoxCropDataset, *args, **options) -> None:
        peak_memory(reset=True)
        begun = memory()
        load(self, *args, **options)
        figures.update(loading=peak_memory(reset=True) - begun)

    def measured_merge(self: LabelWriter, results: list) -> dict:
        figures.update(labeling=peak_memory(reset=True), labeling_seconds=time.time() - start)
        counts = merge(self, results)
        figures.update(merge=peak_memory(), merge_seconds=time.time() - start)
        figures["merge_seconds"] -= figures["labeling_seconds"]
        return counts

    LabelWriter.compute_metrics, BoxCropDataset.__init__ = measured_merge, measured_load
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_boxes(folder, number)
        cfg = tiny_config(folder)
        model = MODELS.build(cfg.model)
        model.init_weights()
        torch.save(dict(state_dict=model.state_dict()), folder / "mal.pth")
        del model
        start = time.time()
        files = folder / "mal.pth", folder / "boxes.json", folder, folder / "labels.json"
        failed = generate_labels(cfg, *files)
        if failed:
            raise RuntimeError(f"{failed} boxes could not be labeled")
        figures["file"] = (folder / "labels.json").stat().st_size
    print(json.dumps(figures))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--boxes", type=int, nargs=2, default=[20000, 200000])
    parser.add_argument("--measure", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        return measure(args.measure)
    phases = ("loading", "labeling", "merge")
    sizes = [f"{phase}, MB" for phase in phases]
    table = Table("boxes", *sizes, "labeling, s", "merge, s", "file, MB")
    found = []
    for number in track(args.boxes, "measuring", "sizes"):
        command = [sys.executable, __file__, "--measure", str(number)]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        figures = json.loads(done.stdout.splitlines()[-1])
        found.append(figures)
        table.add_row(
            f"{number:,}",
            *(f"{figures[phase] / 1e6:.0f}" for phase in phases),
            *(f"{figures[f'{phase}_seconds']:.0f}" for phase in ("labeling", "merge")),
            f"{figures['file'] / 1e6:.0f}",
        )
    console = Console()
    console.print(table)  # of loading only what it adds; it is over before labeling begins
    more = args.boxes[1] - args.boxes[0]
    for phase in phases:
        growth = (found[1][phase] - found[0][phase]) / more
        console.print(f"{phase}: {growth:.0f} bytes for each further box")


if __name__ == "__main__":
    main()
