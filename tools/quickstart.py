#!/usr/bin/env python
# SPDX-License-Identifier: Apache-2.0
"""The whole main job on the demo data, as the commands that a user would type, and a summary.

A stage whose results are there is skipped; delete the work dir to start over.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import subprocess
import sys
import time
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from mal_mmdet.labeling import write_json

ROOT = Path(__file__).resolve().parents[1]
MAL = "configs/mal/mal_vit-demo_1xb16_demo.py"
DETECTOR = "configs/mask_rcnn/mask-rcnn_demo-mal.py"
DATA = Path("data/demo")
HIDE_GPU = dict(CUDA_VISIBLE_DEVICES="")
LABELS = dict(mal="MAL's masks", human="true masks", box="filled boxes")
PROGRESS = re.compile(r"Epoch\(.*|^\w.* left$")  # lines of MMEngine, and of mal_mmdet.progress
console = Console()


class Stages:
    """Runs the stages of the job and remembers in ``stages.json`` what each one took.

    A stage that was interrupted counts all of its attempts.
    """

    def __init__(self, work_dir: Path) -> None:
        self.file = work_dir / "stages.json"
        self.stages = json.loads(self.file.read_text()) if self.file.exists() else {}
        self.log_file = work_dir / "quickstart.log"

    @property
    def seconds(self) -> dict[str, float]:
        return {name: round(stage["seconds"], 1) for name, stage in self.stages.items()}

    def run(self, name: str, result: Path, *command: str | Path, use_gpu: bool = True) -> None:
        """Runs one of the tools, unless it has run to its end before and its result is there."""
        words = [str(word) for word in command]
        console.rule(name, align="left")
        stage = self.stages.setdefault(name, dict(seconds=0.0, done=False))
        if stage["done"]:
            if (ROOT / result).exists():
                console.print(f"done before, in {stage['seconds']:.0f} s")
                return
            stage.update(seconds=0.0, done=False)  # its result was deleted: a new start
        console.print("python " + shlex.join(words), style="dim", soft_wrap=True)
        start = time.monotonic()
        try:
            stage["done"] = self._succeeds(words, os.environ | ({} if use_gpu else HIDE_GPU))
        finally:
            stage["seconds"] += time.monotonic() - start
            write_json(self.file, self.stages, indent=1)
        if not stage["done"]:
            raise SystemExit(
                f"{name} failed; its output ends with\n"
                + "\n".join(self.log_file.read_text().splitlines()[-15:])
                + f"\nThe whole log: {self.log_file}. Run the same command again to go on."
            )

    def _succeeds(self, words: list[str], env: dict[str, str]) -> bool:
        with open(self.log_file, "a") as log:
            process = subprocess.Popen(
                [sys.executable, *words],
                cwd=ROOT,
                env=env,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
            for line in process.stdout:
                log.write(line)
                progress = PROGRESS.search(line)
                if progress:  # of the logs the terminal gets this alone
                    print(progress[0])
            return process.wait() == 0


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work-dir", type=Path, default=Path("work_dirs/quickstart"))
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    if args.device == "cpu":
        os.environ.update(HIDE_GPU)
    if args.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("--device cuda was asked for, but torch finds no NVIDIA GPU")
    work_dir = args.work_dir.resolve()
    work_dir.mkdir(parents=True, exist_ok=True)
    stages = Stages(work_dir)
    truth, images = DATA / "instances_train.json", DATA / "train"
    boxes = ["--ann-file", DATA / "boxes_train.json", "--img-dir", images]
    labels = {name: work_dir / f"instances_train_{name}.json" for name in (*LABELS, "grabcut")}
    labels["human"] = ROOT / truth

    stages.run("make demo data", truth, "tools/make_demo_dataset.py", "--out", DATA)
    last = work_dir / "mal/last_checkpoint"
    train = ["tools/train.py", MAL, "--work-dir", last.parent, "--resume"]
    stages.run("train MAL", last, *train)
    out = ["--out", labels["mal"], "--work-dir", work_dir / "labeling", "--resume"]
    label = ["tools/generate_labels.py", MAL, last.read_text(), *boxes, *out]
    stages.run("label", labels["mal"], *label)
    for method in ("box", "grabcut"):
        out = labels[method]
        label = ["tools/label_baseline.py", method, *boxes, "--out", out]
        stages.run(f"label with {method}", out, *label)
    for name in ("mal", "box", "grabcut"):
        out = work_dir / f"miou_{name}.json"
        evaluate = ["tools/evaluate_labels.py", labels[name], truth, "--out", out]
        stages.run(f"evaluate labels of {name}", out, *evaluate)
    picture = work_dir / "labels.png"
    draw = ["tools/visualize.py", "masks", labels["mal"], truth, "--img-dir", images]
    draw += ["--out", picture]
    stages.run("draw labels", picture, *draw)
    gpu = operators_on_gpu()
    for name, text in LABELS.items():
        last = work_dir / f"mask_rcnn_{name}/last_checkpoint"
        train = ["tools/train.py", DETECTOR, "--work-dir", last.parent, "--resume"]
        options = ["--cfg-options", f"train_dataloader.dataset.ann_file={labels[name]}"]
        options += ["randomness.seed=0", "train_cfg.val_begin=1000"]  # it is tested below
        stages.run(f"train Mask R-CNN on {text}", last, *train, *options, use_gpu=gpu)
        test = ["tools/test.py", DETECTOR, last.read_text(), "--work-dir"]
        out = work_dir / f"test_{name}"
        stages.run(f"test Mask R-CNN on {text}", out, *test, out, use_gpu=gpu)
    summary = summarize(work_dir, stages.seconds)
    write_json(work_dir / "summary.json", summary, indent=1)
    print_summary(summary)
    console.print(f"summary: {work_dir / 'summary.json'}\nlabels:  {labels['mal']}")
    console.print(f"picture: {picture}")


def operators_on_gpu() -> bool:
    """Whether mmcv's operators, which Mask R-CNN needs, were compiled for the GPU."""
    from mmcv.ops import get_compiling_cuda_version

    return get_compiling_cuda_version() != "not available"


def summarize(work_dir: Path, seconds: dict[str, float]) -> dict:
    """Gathers the figures of all stages; mask AP and mIoU in [0, 1]."""
    miou = {
        name: json.loads((work_dir / f"miou_{name}.json").read_text())["miou"]
        for name in ("mal", "box", "grabcut")
    }
    mask_ap = {}
    for name in LABELS:
        # MMEngine names the file of a test's metrics after its time.
        metrics = max((work_dir / f"test_{name}").glob("*/*.json"))
        mask_ap[name] = json.loads(metrics.read_text())["coco/segm_mAP"]
    return dict(
        label_miou=miou["mal"],
        box_miou=miou["box"],
        grabcut_miou=miou["grabcut"],
        mask_ap=mask_ap,
        retention=mask_ap["mal"] / mask_ap["human"] if mask_ap["human"] else None,
        seconds=seconds | dict(total=round(sum(seconds.values()), 1)),
    )


def print_summary(summary: dict) -> None:
    table = Table("", "label mIoU", "mask AP of Mask R-CNN", title="Masks from boxes alone")
    ap = {name: f"{value:.3f}" for name, value in summary["mask_ap"].items()}
    table.add_row("filled boxes", f"{summary['box_miou']:.3f}", ap["box"])
    table.add_row("GrabCut", f"{summary['grabcut_miou']:.3f}", "")
    table.add_row("Mask Auto-Labeler", f"{summary['label_miou']:.3f}", ap["mal"])
    table.add_row("true masks", "1", ap["human"])
    console.print(table)
    if summary["retention"] is not None:
        console.print(f"retention: {summary['retention']:.3f} of the AP with true masks")
    console.print(f"time: {summary['seconds']['total']:.0f} s")


if __name__ == "__main__":
    main()
