#!/usr/bin/env python
# SPDX-License-Identifier: Apache-2.0
"""Trains, or labels, for a given time and says what grows: memory, file descriptors, /dev/shm.

Growth after the warm-up is the slope of a line through the means of 20 spans of time, with its 95 %
interval. The results have to be those of a short run: a new process that resumes from the last
checkpoint but one has to get the weights of the last; labeling has a file with every box of the
config's test data many times over, and every copy has to get the labels that a run over one gives.
"""

from __future__ import annotations

import argparse
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import matplotlib
import numpy as np
import psutil
import torch
from mmengine.runner import CheckpointLoader
from rich.console import Console
from rich.table import Table
from scipy import stats

from mal_mmdet.apis import read_config
from mal_mmdet.labeling import LabelShards, read_coco, shard_folder, write_json

ROOT = Path(__file__).parents[2]
SPANS = 20  # neighbouring samples are alike; the means of spans are so less
SERIES = {"memory": "MB", "allocated": "MB", "descriptors": "", "shm": "MB"}
MOST_BOXES = 100  # a second; no core labels so many of them one by one
LABEL = ("segmentation", "area", "mask_quality", "source")


def sample(root: psutil.Process) -> dict[str, float]:
    """What a process and its children hold now.

    Returns:
        ``memory`` in MB: pages that several of them share count once, and those of files, such as
        libraries, not at all. It also grows when a process writes to a page that it shared with
        its children, to its reference counts for one. ``allocated`` in MB does not: in it shared
        pages count for each. Open file ``descriptors``. ``shm``, all that lies in the machine's
        /dev/shm, in MB.
    """
    found = dict.fromkeys(SERIES, 0.0)
    for process in [root, *root.children(recursive=True)]:
        try:
            pages = Path(f"/proc/{process.pid}/smaps_rollup").read_text(encoding="ascii")
            descriptors = process.num_fds()
        except (OSError, psutil.Error):  # it has just ended
            continue
        kilobytes = re.findall(r"Pss_(?:Anon|Shmem): +(\d+) kB", pages)
        found["memory"] += sum(map(int, kilobytes)) * 1024 / 1e6
        (kilobytes,) = re.findall(r"^Anonymous: +(\d+) kB", pages, re.MULTILINE)
        found["allocated"] += int(kilobytes) * 1024 / 1e6
        found["descriptors"] += descriptors
    shm = os.statvfs("/dev/shm")
    found["shm"] = (shm.f_blocks - shm.f_bfree) * shm.f_frsize / 1e6
    return found


def watch(command: list, seconds: float, interval: float, log: Path) -> tuple[list[dict], int]:
    """Runs a command for a time, ends it by SIGTERM, and samples it meanwhile.

    Returns:
        The samples, with the ``time`` of each in seconds, and the exit code.

    Raises:
        RuntimeError: The command ended by itself.
    """
    samples, start = [], time.monotonic()
    with open(log, "w", encoding="utf-8") as output:
        process = subprocess.Popen(
            [str(part) for part in command], stdout=output, stderr=subprocess.STDOUT
        )
        try:
            while (now := time.monotonic() - start) < seconds:
                if process.poll() is not None:
                    raise RuntimeError(
                        f"the run ended by itself after {now:.0f} s with exit code "
                        f"{process.returncode}; its output is {log}"
                    )
                samples.append(dict(time=round(now, 1), **sample(psutil.Process(process.pid))))
                time.sleep(interval)
            process.send_signal(signal.SIGTERM)
            return samples, process.wait(timeout=120)
        finally:
            process.kill()


def growth(times: np.ndarray, values: np.ndarray) -> dict[str, float]:
    """Slope of a series per hour, its 95 % interval (±), and the series' mean.

    Args:
        times: In seconds, (n,).
        values: (n,).
    """
    parts = [part for part in np.array_split(np.arange(len(times)), SPANS) if len(part)]
    t, v = (np.array([x[part].mean() for part in parts]) for x in (times, values))
    (slope, _), covariance = np.polyfit(t / 3600, v, 1, cov=True)
    half = stats.t.ppf(0.975, len(parts) - 2) * covariance[0, 0] ** 0.5
    return dict(mean=float(values.mean()), per_hour=float(slope), plus_minus=float(half))


def training(config: str, work_dir: Path, epochs: int = 1_000_000, workers: int = 2) -> list:
    """The command of a training, by default without end and with data-loader workers."""
    command = [sys.executable, ROOT / "tools/train.py", config, "--work-dir", work_dir]
    options = [f"train_cfg.max_epochs={epochs}", f"train_dataloader.num_workers={workers}"]
    options += [f"train_dataloader.persistent_workers={workers > 0}"]
    return [*command, "--cfg-options", *options]


def retrain(config: str, soaked: Path, again: Path) -> dict[str, int]:
    """Trains the last whole epoch of a soak once more, and counts the weights that differ.

    Args:
        soaked: Folder with the checkpoints ``epoch_*.pth`` of the last epochs.
        again: Folder for the new ones.

    Raises:
        FileNotFoundError: There are not two of them.
    """
    epochs = sorted(int(path.stem.removeprefix("epoch_")) for path in soaked.glob("epoch_*.pth"))
    if len(epochs) < 2:
        raise FileNotFoundError(f"{soaked} has checkpoints of the epochs {epochs}, two are needed")
    before, last = epochs[-2:]
    command = training(config, again, epochs=last, workers=0)
    command += ["--resume", soaked / f"epoch_{before}.pth"]
    subprocess.run([str(part) for part in command], check=True, stdout=subprocess.DEVNULL)
    weights, expected = (
        CheckpointLoader.load_checkpoint(str(folder / f"epoch_{last}.pth"))["state_dict"]
        for folder in (again, soaked)
    )
    different = sum(not torch.equal(weights[name], expected[name]) for name in expected)
    return dict(epoch=last, tensors=len(expected), different=different)


def label_command(args: argparse.Namespace, boxes: Path, images: str, out: Path) -> list:
    """The command that labels a file of boxes, an image at a time."""
    command = [sys.executable, ROOT / "tools/generate_labels.py", args.config, args.checkpoint]
    command += ["--ann-file", boxes, "--img-dir", images, "--out", out]
    # Copies of an image meet the network in the same company: alone.
    options = ["model.crops_per_batch=1", "test_dataloader.num_workers=2"]
    return [*command, "--work-dir", args.work_dir / "log", "--cfg-options", *options]


def copies(coco: dict, number: int) -> dict:
    """A COCO file with all images and annotations many times over, under new ids."""
    images, anns = coco["images"], coco["annotations"]
    step, ann_step = (1 + max(entry["id"] for entry in entries) for entries in (images, anns))
    return dict(
        coco,
        images=[i | dict(id=i["id"] + step * n) for n in range(number) for i in images],
        annotations=[
            a | dict(id=a["id"] + ann_step * n, image_id=a["image_id"] + step * n)
            for n in range(number)
            for a in anns
        ],
    )


def labeling(args: argparse.Namespace) -> tuple[list, dict]:
    """Labels the boxes once, and gives the command that labels their copies, and its files."""
    source = read_config(args.config).test_dataloader.dataset.dataset
    root = Path(source.data_root)
    coco, images = read_coco(root / source.ann_file), root / source.data_prefix.img
    short, out = args.work_dir / "short.json", args.work_dir / "labels.json"
    subprocess.run(
        [str(part) for part in label_command(args, root / source.ann_file, images, short)],
        check=True,
        stdout=subprocess.DEVNULL,
    )
    boxes = args.work_dir / "boxes.json"
    number = 1 + int(args.minutes * 60 * MOST_BOXES / len(coco["annotations"]))
    write_json(boxes, copies(coco, number))
    return label_command(args, boxes, images, out), dict(short=short, out=out, copies=number)


def compare(files: dict) -> dict[str, int]:
    """Compares the finished labels of the copies with those of the short run."""
    expected = read_coco(files["short"])["annotations"]
    shards = LabelShards(shard_folder(files["out"]))
    labels = shards.labels(len(expected) * files["copies"])
    counts = dict(labels=0, different=0)
    for i in range(len(expected) * files["copies"]):
        if label := labels.get(i):
            counts["labels"] += 1
            reference = expected[i % len(expected)]
            counts["different"] += any(label[key] != reference[key] for key in LABEL)
    return counts


def draw(samples: list[dict], warm_up: float, path: Path) -> None:
    """A small plot of all series over time."""
    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, len(SERIES), figsize=(11, 2.4), layout="constrained")
    minutes = [s["time"] / 60 for s in samples]
    for axis, (name, unit) in zip(axes, SERIES.items()):
        axis.plot(minutes, [s[name] for s in samples], linewidth=1)
        axis.axvline(warm_up, color="grey", linewidth=0.7, linestyle=":")
        axis.set(title=f"{name}, {unit}".rstrip(", "), xlabel="minutes", ylim=(0, None))
    figure.savefig(path, dpi=100)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("task", choices=["train", "label"])
    parser.add_argument("config", help="config of phase 1")
    parser.add_argument("checkpoint", nargs="?", help="trained weights, to label")
    parser.add_argument("--work-dir", type=Path, required=True, help="folder for all it writes")
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--warm-up", type=float, default=5, help="minutes that are not fitted")
    parser.add_argument("--interval", type=float, default=5, help="seconds between samples")
    args = parser.parse_args()
    if (args.task == "label") != bool(args.checkpoint):
        parser.error("label needs a checkpoint, train takes none")
    return args


def main() -> None:
    args = parse_args()
    args.work_dir.mkdir(parents=True)
    if args.task == "train":
        command, files = training(args.config, args.work_dir), {}
    else:
        command, files = labeling(args)
    samples, code = watch(command, args.minutes * 60, args.interval, args.work_dir / "output.txt")
    warm = [s for s in samples if s["time"] >= args.warm_up * 60]
    times = np.array([s["time"] for s in warm])
    fits = {name: growth(times, np.array([s[name] for s in warm])) for name in SERIES}
    result = dict(task=args.task, minutes=args.minutes, warm_up=args.warm_up, exit_code=code)
    draw(samples, args.warm_up, args.work_dir / "soak.png")
    write_json(args.work_dir / "soak.json", dict(result, growth=fits, samples=samples), indent=1)
    if args.task == "train":
        result |= retrain(args.config, args.work_dir, args.work_dir / "again")
    else:
        result |= compare(files)
    write_json(args.work_dir / "soak.json", dict(result, growth=fits, samples=samples), indent=1)
    table = Table("", "mean", "growth an hour", "± (95 %)")
    for name, unit in SERIES.items():
        fit = fits[name]
        table.add_row(
            f"{name} {unit}", *(f"{fit[key]:.2f}" for key in ("mean", "per_hour", "plus_minus"))
        )
    Console().print(table)
    print(result)


if __name__ == "__main__":
    main()
