#!/usr/bin/env python
# SPDX-License-Identifier: Apache-2.0
"""Time and memory of the mean field beside its plain formulation, on crops of photographs."""

from __future__ import annotations

import argparse
import itertools
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence

import skimage.data
import torch
import torch.nn.functional as F
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table
from torch import Tensor

from mal_mmdet.labeling import write_json
from mal_mmdet.models.losses import mean_field
from mal_mmdet.progress import track

PHOTOS = ("astronaut", "chelsea", "coffee", "rocket")
MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)


def plain_mean_field(
    probs: Tensor,
    box_masks: Tensor,
    images: Tensor,
    zeta: float,
    num_steps: int = 100,
    epsilon: float = 1e-6,
) -> Tensor:
    """The method as it is stated: both labels, ``Unfold`` of −log x, every pixel, every step."""
    batch, height, width = probs.shape
    unfold = torch.nn.Unfold(3, padding=1)
    others = unfold(images).view(batch, images.shape[1], 9, -1)
    kernel = torch.exp((images.flatten(2)[:, :, None] - others).square().sum(1) / (-2 * zeta**2))
    kernel[:, 4] = 1
    foreground = (probs * box_masks).clamp(0.1, 0.9)
    x = torch.stack([1 - foreground, foreground], 1)
    prior = torch.stack([torch.ones_like(box_masks), box_masks], 1).flatten(2)
    for _ in range(num_steps):
        costs = unfold(-x.log()).view(batch, 2, 9, -1)
        a = torch.exp(-(kernel[:, None] * costs).sum(2)) * prior
        x = (a / (a.sum(1, keepdim=True) + epsilon)).clamp(0.1, 0.9).view(batch, 2, height, width)
    return x[:, 1] > 0.5


def photo_crops(count: int, size: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Crops of photographs at mask resolution, as training sees them.

    A crop's box is 1.2 to 2 times smaller than the crop and in its middle; q is a disc with noise.

    Returns:
        q and t of shape (B, size, size) and normalised images of shape (B, 3, size, size).
    """
    generator = torch.Generator().manual_seed(seed)
    images, boxes = [], torch.zeros(count, size, size)
    for i in range(count):
        photo = torch.from_numpy(getattr(skimage.data, PHOTOS[i % len(PHOTOS)])()).float()
        side = int(torch.randint(150, 300, (), generator=generator))
        y, x = (int(torch.randint(n - side, (), generator=generator)) for n in photo.shape[:2])
        crop = (photo[y : y + side, x : x + side] - torch.tensor(MEAN)) / torch.tensor(STD)
        images.append(F.interpolate(crop.permute(2, 0, 1)[None], (size, size), mode="bilinear"))
        box = int(size / (1.2 + 0.8 * float(torch.rand((), generator=generator))))
        start = (size - box) // 2
        boxes[i, start : start + box, start : start + box] = 1
    line = torch.linspace(-1, 1, size)
    noise = F.interpolate(torch.randn(count, 1, 16, 16, generator=generator), (size, size))[:, 0]
    probs = torch.sigmoid(4 * (0.5 - line[:, None] ** 2 - line**2) + noise)
    return probs, boxes, torch.cat(images)


def now() -> float:
    """Seconds, after all work of the GPU so far."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def benchmark(
    count: int, size: int, zeta: float, runs: int, device: str = "cpu"
) -> dict[str, float]:
    """Medians over runs in turn, after one that does not count."""
    inputs = [maps.to(device) for maps in photo_crops(count, size)]
    functions = dict(plain=plain_mean_field, mean_field=mean_field)
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(runs + 1):
        for name, function in functions.items():
            start = now()
            function(*inputs, zeta)
            seconds[name].append(now() - start)
    medians = {name: statistics.median(times[1:]) for name, times in seconds.items()}
    return dict(
        crops=count,
        size=size,
        zeta=zeta,
        plain_ms=1e3 * medians["plain"],
        mean_field_ms=1e3 * medians["mean_field"],
        ratio=statistics.median(
            a / b for a, b in zip(seconds["plain"][1:], seconds["mean_field"][1:])
        ),
        **equal_pixels(inputs, zeta),
    )


def equal_pixels(inputs: Sequence[Tensor], zeta: float) -> dict[str, float]:
    """Shares of pixels that are the same as stated: of all, in the boxes, and without the 1e-6."""
    masks = mean_field(*inputs, zeta)
    same = plain_mean_field(*inputs, zeta) == masks
    doubles = [x.double() for x in inputs]
    exact = plain_mean_field(*doubles, zeta, epsilon=0.0)
    return dict(
        equal=float(same.float().mean()),
        equal_in_boxes=float(same[inputs[1] > 0].float().mean()),
        equal_without_epsilon=float((exact == masks).float().mean()),
        equal_without_epsilon_float64=float((exact == mean_field(*doubles, zeta)).float().mean()),
    )


def peak_memory(name: str, size: int = 512, count: int = 64) -> None:
    """Prints how many times the probability map a process grows at most; boxes fill the crops."""
    function = dict(plain=plain_mean_field, mean_field=mean_field)[name]
    generator = torch.Generator().manual_seed(0)
    probs = torch.rand(count, size, size, generator=generator)
    images = torch.rand(count, 3, size, size, generator=generator)
    box_masks = torch.ones_like(probs)
    function(probs[:1, :8, :8], box_masks[:1, :8, :8], images[:1, :, :8, :8], 0.1)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    function(probs, box_masks, images, 0.1, num_steps=2)
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print((after - before) * 1024 / (probs.numel() * probs.element_size()))


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--crops", type=int, nargs="+", default=[8])
    parser.add_argument("--sizes", type=int, nargs="+", default=[128])
    parser.add_argument("--zetas", type=float, nargs="+", default=[0.1, 0.3])
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--threads", type=int, help="PyTorch's default if not given")
    parser.add_argument("--device", default="cpu", help="such as cuda:0")
    parser.add_argument("--out", help="JSON file for the figures")
    parser.add_argument(
        "--memory", action="store_true", help="peak memory on the CPU too; takes 6 GB"
    )
    parser.add_argument("--memory-of", choices=["plain", "mean_field"], help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    if args.memory_of:
        peak_memory(args.memory_of)
        return
    settings = [*itertools.product(args.crops, args.sizes, args.zetas)]
    rows = [benchmark(*s, args.runs, args.device) for s in track(settings, "measuring", "rows")]
    title = f"mean field, 100 steps, {args.device}, {torch.get_num_threads()} threads"
    names = ["crops", "size", "ζ", "plain ms", "ours ms", "µs a crop", "ratio"]
    names += ["% equal", "in boxes", "no 1e-6", "float64"]
    table = Table(*names, title=title, box=SIMPLE, padding=0)
    for row in rows:
        table.add_row(
            str(row["crops"]),
            str(row["size"]),
            str(row["zeta"]),
            f"{row['plain_ms']:.0f}",
            f"{row['mean_field_ms']:.1f}",
            f"{1e3 * row['mean_field_ms'] / row['crops']:.0f}",
            f"{row['ratio']:.1f}",
            *(f"{100 * value:.2f}" for key, value in row.items() if key.startswith("equal")),
        )
    Console().print(table)
    figures = dict(device=args.device, threads=torch.get_num_threads(), rows=rows)
    if args.memory:
        # The highest mark of a process never falls, so each is measured in one of its own.
        command = [sys.executable, __file__, "--memory-of"]
        figures["memory"] = {
            name: float(subprocess.check_output([*command, name]).split()[-1])
            for name in ("plain", "mean_field")
        }
        print("peak memory, in probability maps:", figures["memory"])
    if args.out:
        write_json(args.out, figures, 1)


if __name__ == "__main__":
    main()
