#!/usr/bin/env python
# SPDX-License-Identifier: Apache-2.0
"""The whole main job on the demo data, as the commands that a user would type, and a summary.

A stage whose results are there is skipped; delete the work dir to start over.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import subprocess
import sys
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

from mal_mmdet.labeling import write_json

ROOT = Path(__file__).resolve().parents[1]
MAL = "configs/mal/mal_vit-demo_1xb16_demo.py"
DETECTOR = "configs/mask_rcnn/mask-rcnn_demo-mal.py"
DATA = Path("data/demo")
LABELS = dict(mal="MAL's masks", human="true masks", box="filled boxes")
console = Console()


class Stages:
    """Runs the stages of the job and remembers in ``stages.json`` what each one took."""

    def __init__(self, work_dir: Path) -> None:
        self.file = work_dir / "stages.json"
        self.seconds = json.loads(self.file.read_text()) if self.file.exists() else {}
        self.log_file = work_dir / "quickstart.log"

    def run(self, name: str, *command: str | Path, use_gpu: bool = True) -> None:
        """Runs one of the tools, unless it has run to its end before."""
        words = [str(word) for word in command]
        console.rule(f"{name}", align="left")
        if name in self.seconds:
            console.print(f"done before, in {self.seconds[name]:.0f} s")
            return
        console.print("python " + shlex.join(words), style="dim", soft_wrap=True)
        env = os.environ | ({} if use_gpu else dict(CUDA_VISIBLE_DEVICES=""))
        start = time.monotonic()
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
                # Of a training's log the terminal gets its progress only.
                if "Epoch(" in line or "labeling" in line:
                    console.print(line[line.find("Epoch(") :].rstrip(), highlight=False)
        if process.wait():
            raise SystemExit(
                f"{name} failed with exit code {process.returncode}; its output ends with\n"
                + "\n".join(self.log_file.read_text().splitlines()[-15:])
                + f"\nThe whole log: {self.log_file}. Run the same command again to go on."
            )
        self.seconds[name] = round(time.monotonic() - start, 1)
        write_json(self.file, self.seconds, indent=1)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work-dir", type=Path, default=Path("work_dirs/quickstart"))
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    if args.device == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    work_dir = args.work_dir.resolve()
    work_dir.mkdir(parents=True, exist_ok=True)
    stages = Stages(work_dir)
    truth, images = DATA / "instances_train.json", DATA / "train"
    boxes = ["--ann-file", DATA / "boxes_train.json", "--img-dir", images]
    labels = {name: work_dir / f"instances_train_{name}.json" for name in (*LABELS, "grabcut")}
    labels["human"] = ROOT / truth

    stages.run("demo data", "tools/make_demo_dataset.py", "--out", DATA)
    stages.run("train MAL", "tools/train.py", MAL, "--work-dir", work_dir / "mal", "--resume")
    checkpoint = Path((work_dir / "mal/last_checkpoint").read_text())
    out = ["--out", labels["mal"], "--work-dir", work_dir / "labeling"]
    stages.run("label", "tools/generate_labels.py", MAL, checkpoint, *boxes, *out)
    for method in ("box", "grabcut"):
        out = ["--out", labels[method]]
        stages.run(f"label by {method}", "tools/label_baseline.py", method, *boxes, *out)
    for name in ("mal", "box", "grabcut"):
        out = ["--out", work_dir / f"miou_{name}.json"]
        stages.run(f"evaluate {name}", "tools/evaluate_labels.py", labels[name], truth, *out)
    picture = work_dir / "labels.png"
    draw = ["tools/draw_labels.py", labels["mal"], truth, "--img-dir", images, "--out", picture]
    stages.run("draw labels", *draw)
    for name, text in LABELS.items():
        stages.run(
            f"train Mask R-CNN on {text}",
            "tools/train.py",
            DETECTOR,
            *("--work-dir", work_dir / f"mask_rcnn_{name}", "--resume", "--cfg-options"),
            f"train_dataloader.dataset.ann_file={labels[name]}",
            "randomness.seed=0",
            use_gpu=operators_on_gpu(),
        )
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
        # The log of the last run of a training, one JSON object a line.
        log = max((work_dir / f"mask_rcnn_{name}").glob("*/vis_data/scalars.json"))
        lines = [json.loads(line) for line in log.read_text().splitlines()]
        mask_ap[name] = [v["coco/segm_mAP"] for v in lines if "coco/segm_mAP" in v][-1]
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
