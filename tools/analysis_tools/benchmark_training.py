#!/usr/bin/env python
# SPDX-License-Identifier: Apache-2.0
"""Where a training step of phase 1 spends its time: networks, losses, optimizer, teacher, data.

Also the memory that the process takes at its peak.

Crops are made-up images with one box each, so that the step can be timed without a data set; with
``--data`` the config's own data set is read as well, by one process, to compare.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from mmdet.registry import DATASETS, HOOKS, MODELS
from mmdet.structures import DetDataSample
from mmengine.config import Config, DictAction
from mmengine.device import get_device
from mmengine.optim import build_optim_wrapper
from mmengine.registry import init_default_scope
from mmengine.runner import turn_on_activation_checkpointing
from mmengine.structures import InstanceData
from rich.console import Console
from rich.table import Table
from torch import Tensor

from mal_mmdet.apis import full_precision_without_gpu
from mal_mmdet.labeling import write_json
from mal_mmdet.models import MaskAutoLabeler
from mal_mmdet.progress import track

NETWORKS = ("student, forward", "student, backward", "teacher, forward")


class StepTimer:
    """Seconds of the parts of a step, by name; on a GPU each part is waited for.

    Waiting keeps parts from overlapping, so their sum is a little more than the step takes
    without a timer.
    """

    def __init__(self) -> None:
        self.seconds: dict[str, list[float]] = defaultdict(list)

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        start = self.now()
        yield
        self.seconds[name].append(self.now() - start)

    @staticmethod
    def now() -> float:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return time.perf_counter()

    def timed(self, name: str, function: Callable) -> Callable:
        def run(*args, **kwargs):
            with self.part(name):
                return function(*args, **kwargs)

        return run


def made_up_batch(count: int, size: int, device: str) -> dict:
    """Noise at two scales, with a box in the middle of each crop, as the data set would give it."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(count, 3, 8, 8, generator=generator) * 200
    images = torch.nn.functional.interpolate(coarse, (size, size), mode="bilinear")
    images = (images + torch.rand(images.shape, generator=generator) * 40).to(torch.uint8)
    boxes = torch.tensor([[0.2, 0.25, 0.8, 0.75]]) * size
    samples = [
        DetDataSample(gt_instances=InstanceData(bboxes=boxes, areas=torch.tensor([9000.0])))
        for _ in range(count)
    ]
    inputs = dict(student=[*images.to(device)], teacher=[*images.to(device)])
    return dict(inputs=inputs, data_samples=dict(student=samples))


def time_steps(
    cfg: Config, steps: int, warmup: int, compiled: bool = False, channels_last: bool = False
) -> dict[str, list[float]]:
    """Trains on one batch over and over.

    Returns:
        Seconds of each part in each step; ``step`` is the whole.
    """
    init_default_scope("mmdet")
    device = get_device()
    cfg.model.network.pop("init_cfg", None)
    model: MaskAutoLabeler = MODELS.build(cfg.model).to(device).train()
    turn_on_activation_checkpointing(model, cfg.get("activation_checkpointing", []))
    optim_wrapper = build_optim_wrapper(model, cfg.optim_wrapper)
    size, count = cfg.train_dataloader.dataset.pipeline[1].size, cfg.train_dataloader.batch_size
    batch = made_up_batch(count, size, device)
    teacher = next(HOOKS.build(h) for h in cfg.custom_hooks if "MeanTeacherHook" in h.type)

    for network in (model.student, model.teacher):
        if channels_last:
            network.to(memory_format=torch.channels_last)
        if compiled:
            network.forward = torch.compile(network.forward)

    timer = StepTimer()
    forward = model.student.forward
    backward_of_student: list[float] = []

    def student(*args) -> Tensor:
        with timer.part("student, forward"):
            logits = forward(*args)
        # All that is left of the backward pass once the gradient is here is the student's.
        logits.register_hook(lambda gradient: backward_of_student.append(timer.now()))
        return logits

    model.student.forward = student
    model.teacher.forward = timer.timed("teacher, forward", model.teacher.forward)
    model.mil_loss.forward = timer.timed("MIL loss, forward", model.mil_loss.forward)
    model.crf_loss.forward = timer.timed("CRF loss, forward", model.crf_loss.forward)

    for step in track(range(steps + warmup), "measuring", "steps"):
        if step == warmup:
            timer.seconds.clear()
        with timer.part("step"):
            with timer.part("preprocessing"):
                data = model.data_preprocessor(batch, training=True)
            with optim_wrapper.optim_context(model):
                losses = model(**data, mode="loss")
            loss, _ = model.parse_losses(losses)
            start = timer.now()
            optim_wrapper.backward(loss)
            end = timer.now()
            timer.seconds["student, backward"].append(end - backward_of_student[-1])
            timer.seconds["losses, backward"].append(backward_of_student[-1] - start)
            with timer.part("optimizer"):
                optim_wrapper.step()
                optim_wrapper.zero_grad()
            with timer.part("mean teacher"):
                teacher.momentum_update(model, teacher.momentum)
    return timer.seconds


def peak_memory() -> float:
    """The most that this process has taken so far, in GiB: of the GPU, or, without one, at all."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # in KiB on Linux


def time_samples(cfg: Config, count: int) -> float:
    """Seconds that one process needs for a crop of the config's training data set."""
    dataset = DATASETS.build(cfg.train_dataloader.dataset)
    indices = torch.randperm(len(dataset), generator=torch.Generator().manual_seed(0))[:count]
    dataset[int(indices[0])]
    start = time.perf_counter()
    for index in indices.tolist():
        dataset[index]
    return (time.perf_counter() - start) / len(indices)


def summarize(seconds: dict[str, list[float]]) -> dict[str, float]:
    """Medians in milliseconds; ``outside the networks`` is the share of the step."""
    figures = {name: 1e3 * statistics.median(values) for name, values in seconds.items()}
    figures["rest"] = figures["step"] - sum(v for k, v in figures.items() if k != "step")
    networks = sum(figures[name] for name in NETWORKS)
    figures["outside the networks"] = 1 - networks / figures["step"]
    return figures


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("config", help="config of phase 1")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--warmup", type=int, default=3, help="steps before them")
    parser.add_argument("--data", type=int, default=0, metavar="N", help="also time N samples")
    parser.add_argument("--compile", action="store_true", help="both networks by torch.compile")
    parser.add_argument("--channels-last", action="store_true", help="layout of their convolutions")
    parser.add_argument("--out", help="JSON file for the figures")
    parser.add_argument("--cfg-options", nargs="+", action=DictAction, help="override the config")
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    cfg = Config.fromfile(args.config)
    cfg.merge_from_dict(args.cfg_options or {})
    full_precision_without_gpu(cfg)
    seconds = time_steps(cfg, args.steps, args.warmup, args.compile, args.channels_last)
    figures = summarize(seconds)
    count = cfg.train_dataloader.batch_size
    table = Table("part", "ms", "share", title=f"a step of {count} crops on {get_device()}")
    for name, value in figures.items():
        if name not in ("step", "outside the networks"):
            table.add_row(name, f"{value:.1f}", f"{value / figures['step']:.1%}")
    table.add_section()
    table.add_row("step", f"{figures['step']:.1f}", "100 %")
    table.add_row("outside the networks", "", f"{figures['outside the networks']:.1%}")
    figures["peak memory, GiB"] = peak_memory()
    table.add_row("peak memory", f"{figures['peak memory, GiB']:.2f} GiB", "")
    if args.data:
        figures["data"] = 1e3 * time_samples(cfg, args.data) * count
        table.add_row("a batch of data, one process", f"{figures['data']:.1f}", "")
    Console().print(table)
    if args.out:
        write_json(args.out, figures, 1)


if __name__ == "__main__":
    main()
