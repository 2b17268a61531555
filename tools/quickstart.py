#!/usr/bin/env python
# SPDX-License-Identifier: Apache-2.0
"""The whole main job on the demo data, as the commands that a user would type, and a summary.

What needs MAL's labels and what does not run side by side, with half of the cores each. A stage
whose results are there is skipped; delete the work dir to start over.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor, as_completed
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
    """Runs the stages of the job and remembers in ``spans.json`` when each one ran.

    A stage that was interrupted counts all of its attempts. Several threads may run stages.
    """

    def __init__(self, work_dir: Path) -> None:
        self.file = work_dir / "spans.json"
        self.stages = json.loads(self.file.read_text()) if self.file.exists() else {}
        self.logs = work_dir / "logs"
        self.logs.mkdir(exist_ok=True)
        self._lock = threading.Lock()  # of what follows, and of the stages
        self._running: set[subprocess.Popen] = set()
        self._stopped = False

    @property
    def seconds(self) -> dict[str, float]:
        """Of each stage, and in ``total`` of the job, in which stages overlap."""
        spans = {name: stage["spans"] for name, stage in self.stages.items()}
        spans["total"] = [span for stage in self.stages.values() for span in stage["spans"]]
        return {name: round(covered(found), 1) for name, found in spans.items()}

    def run(self, name: str, result: Path, *command: str | Path, use_gpu: bool = True) -> None:
        """Runs one of the tools, unless it has run to its end before and its result is there."""
        words = [str(word) for word in command]
        with self._lock:
            stage = self.stages.setdefault(name, dict(spans=[], done=False))
        if stage["done"]:
            if (ROOT / result).exists():
                console.print(f"{name}: done before, in {covered(stage['spans']):.0f} s")
                return
            stage.update(spans=[], done=False)  # its result was deleted: a new start
        log_file = self.logs / (re.sub(r"\W+", "-", name).lower() + ".log")
        env = os.environ | ({} if use_gpu else HIDE_GPU)
        start = time.time()  # of a clock that goes on when the job is run again
        process = self._start(name, words, env)
        console.print(
            f"{name}: python {shlex.join(words)}", style="dim", soft_wrap=True, markup=False
        )
        last_lines: deque[str] = deque(maxlen=15)
        try:
            with open(log_file, "a") as log:
                for line in process.stdout:
                    log.write(line)
                    last_lines.append(line)
                    progress = PROGRESS.search(line)
                    if progress:  # of the logs the terminal gets this alone
                        print(f"{name}: {progress[0]}", flush=True)
        finally:
            process.stdout.close()
            code = process.wait()
            with self._lock:
                self._running.remove(process)
                stage["spans"].append([start, time.time()])
                stage["done"] = code == 0
                write_json(self.file, self.stages, indent=1)
        if code:
            raise SystemExit(
                f"{name} failed; its output ends with\n"
                + "".join(last_lines)
                + f"\nThe whole log: {log_file}. Run the same command again to go on."
            )
        console.print(f"{name}: done in {covered(stage['spans']):.0f} s")

    def _start(self, name: str, words: list[str], env: dict[str, str]) -> subprocess.Popen:
        with self._lock:
            if self._stopped:
                raise SystemExit(f"{name} was not started")
            process = subprocess.Popen(
                [sys.executable, *words],
                cwd=ROOT,
                env=env,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
            self._running.add(process)
        return process

    def stop(self, at_once: bool) -> None:
        """Lets nothing else start, and, ``at_once``, ends what is running."""
        with self._lock:
            self._stopped = True
            for process in self._running if at_once else ():
                process.terminate()


def covered(spans: Iterable[Iterable[float]]) -> float:
    """Seconds in which at least one of the spans, each a start and an end, goes on."""
    total, last = 0.0, 0.0
    for start, end in sorted(spans):
        total += max(0.0, end - max(start, last))
        last = max(last, end)
    return total


def side_by_side(stages: Stages, *lanes: Callable[[], None]) -> None:
    """Calls functions that run stages, each in a thread.

    When one of them fails, the stages that are running go on to their end, and no other starts.
    """
    with ThreadPoolExecutor(len(lanes)) as pool:
        found = [pool.submit(lane) for lane in lanes]
        try:
            for lane in as_completed(found):
                if lane.exception():
                    console.print("a stage failed; what runs beside it is the last to end")
                    stages.stop(at_once=False)
        except BaseException:  # Ctrl-C, or a signal: while this thread waits
            stages.stop(at_once=True)
            raise
    errors = [lane.exception() for lane in found if lane.exception()]
    if errors:
        raise next((error for error in errors if "failed" in str(error)), errors[0])


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work-dir", type=Path, default=Path("work_dirs/quickstart"))
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # as Ctrl-C, which ends the stages too
    if args.device == "cpu":
        os.environ.update(HIDE_GPU)
    if args.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("--device cuda was asked for, but torch finds no NVIDIA GPU")
    work_dir = args.work_dir.resolve()
    work_dir.mkdir(parents=True, exist_ok=True)
    stages = Stages(work_dir)
    # Threads that are more than cores wait for each other most of the time.
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, len(os.sched_getaffinity(0)) // 2)))
    gpu = operators_on_gpu()
    truth, images = DATA / "instances_train.json", DATA / "train"
    boxes = ["--ann-file", DATA / "boxes_train.json", "--img-dir", images]
    labels = {name: work_dir / f"instances_train_{name}.json" for name in (*LABELS, "grabcut")}
    labels["human"] = ROOT / truth
    picture = work_dir / "labels.png"

    def learn_masks() -> None:
        last = work_dir / "mal/last_checkpoint"
        train = ["tools/train.py", MAL, "--work-dir", last.parent, "--resume"]
        stages.run("train MAL", last, *train)
        out = ["--out", labels["mal"], "--work-dir", work_dir / "labeling", "--resume"]
        label = ["tools/generate_labels.py", MAL, last.read_text(), *boxes, *out]
        stages.run("label with MAL", labels["mal"], *label)
        evaluate("mal")
        draw = ["tools/visualize.py", "masks", labels["mal"], truth, "--img-dir", images]
        stages.run("draw labels", picture, *draw, "--out", picture)
        train_detector("mal")

    def compare() -> None:
        for method in ("box", "grabcut"):
            out = labels[method]
            label = ["tools/label_baseline.py", method, *boxes, "--out", out]
            stages.run(f"label with {method}", out, *label)
            evaluate(method)
        train_detector("human")
        train_detector("box")

    def evaluate(name: str) -> None:
        out = work_dir / f"miou_{name}.json"
        command = ["tools/evaluate_labels.py", labels[name], truth, "--out", out]
        stages.run(f"evaluate labels of {name}", out, *command)

    def train_detector(name: str) -> None:
        last = work_dir / f"mask_rcnn_{name}/last_checkpoint"
        train = ["tools/train.py", DETECTOR, "--work-dir", last.parent, "--resume"]
        options = ["--cfg-options", f"train_dataloader.dataset.ann_file={labels[name]}"]
        options += ["randomness.seed=0", "train_cfg.val_begin=1000"]  # it is tested below
        text = f"Mask R-CNN on {LABELS[name]}"
        stages.run(f"train {text}", last, *train, *options, use_gpu=gpu)
        out = work_dir / f"test_{name}"
        test = ["tools/test.py", DETECTOR, last.read_text(), "--work-dir", out]
        stages.run(f"test {text}", out, *test, use_gpu=gpu)

    def make_data() -> None:
        make = ["tools/make_demo_dataset.py", "--out", DATA]
        stages.run("make demo data", truth, *make)

    side_by_side(stages, make_data)
    side_by_side(stages, learn_masks, compare)
    summary = summarize(work_dir, stages.seconds)
    write_json(work_dir / "summary.json", summary, indent=1)
    print_summary(summary)
    files = dict(summary=work_dir / "summary.json", labels=labels["mal"], picture=picture)
    for name, path in files.items():
        console.print(f"{name + ':':8} {os.path.relpath(path)}")


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
        seconds=seconds,
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
