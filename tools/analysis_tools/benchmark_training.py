#!/usr/bin/env python
# SPDX-License-Identifier: Apache-2.0
"""Where a training step of phase 1 spends its time: networks, losses, optimizer, teacher, data.

Beside it, in turn, the same step as the method states it: the mean field with both labels at every
pixel, a teacher that keeps what only a backward pass needs, attention as three operations, and
a mean teacher that goes from parameter to parameter. The floor is the work of both networks at the
speed of this machine's fastest product of large matrices. Also the memory that the process takes at
its peak, for which leave the other step out (--no-baseline).

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
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any
from unittest.mock import patch

import torch
from benchmark_labeling import matmul_rate
from benchmark_mean_field import now, plain_mean_field
from mmdet.engine.hooks import MeanTeacherHook
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
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode, conv_flop_count

from mal_mmdet.apis import full_precision_without_gpu
from mal_mmdet.labeling import write_json
from mal_mmdet.models import MaskAutoLabeler
from mal_mmdet.models.losses import crf_loss
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
        start = now()
        yield
        self.seconds[name].append(now() - start)

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


class Trainer:
    """A network that learns one batch over and over, and the time of the parts of its steps.

    Args:
        cfg: Config of phase 1.
        stated: Whether its steps are those of the baseline.
        compiled: Whether the networks are, by ``torch.compile``.

    Raises:
        ValueError: The baseline is not stated for the config's mean field.
    """

    def __init__(self, cfg: Config, stated: bool = False, compiled: bool = False) -> None:
        self.timer, self.stated = StepTimer(), stated
        device = get_device()
        self.model: MaskAutoLabeler = MODELS.build(cfg.model).to(device).train()
        turn_on_activation_checkpointing(self.model, cfg.get("activation_checkpointing", []))
        self.optim_wrapper = build_optim_wrapper(self.model, cfg.optim_wrapper)
        data = cfg.train_dataloader
        self.batch = made_up_batch(data.batch_size, data.dataset.pipeline[1].size, device)
        hook = HOOKS.build(cfg.default_hooks.mean_teacher)
        self.teacher_hook = MeanTeacherHook(hook.momentum) if stated else hook
        for network in (self.model.student, self.model.teacher):
            if compiled:
                network.forward = torch.compile(network.forward)
        if stated:
            self.model.teacher.requires_grad_(True)
            self.model.teacher.forward = torch.enable_grad()(self.model.teacher.forward)
        self._gradient_is_here = 0.0
        self._time_parts()

    def _time_parts(self) -> None:
        model, timer, forward = self.model, self.timer, self.model.student.forward

        def student(*args) -> Tensor:
            with timer.part("student, forward"):
                logits = forward(*args)
            # All that is left of the backward pass once the gradient is here is the student's.
            logits.register_hook(self._note_gradient)
            return logits

        model.student.forward = student
        model.teacher.forward = timer.timed("teacher, forward", model.teacher.forward)
        model.mil_loss.forward = timer.timed("MIL loss, forward", model.mil_loss.forward)
        model.crf_loss.forward = timer.timed("CRF loss, forward", model.crf_loss.forward)

    def _note_gradient(self, gradient: Tensor) -> None:
        self._gradient_is_here = now()

    def step(self) -> None:
        """Takes one."""
        with ExitStack() as stack:
            if self.stated:
                stack.enter_context(sdpa_kernel(SDPBackend.MATH))
                stack.enter_context(patch.object(crf_loss, "mean_field", stated_mean_field))
            stack.enter_context(self.timer.part("step"))
            self._step()

    def _step(self) -> None:
        timer = self.timer
        with timer.part("preprocessing"):
            data = self.model.data_preprocessor(self.batch, training=True)
        with self.optim_wrapper.optim_context(self.model):
            losses = self.model(**data, mode="loss")
        loss, _ = self.model.parse_losses(losses)
        start = now()
        self.optim_wrapper.backward(loss)
        timer.seconds["student, backward"].append(now() - self._gradient_is_here)
        timer.seconds["losses, backward"].append(self._gradient_is_here - start)
        with timer.part("optimizer"):
            self.optim_wrapper.step()
            self.optim_wrapper.zero_grad()
        with timer.part("mean teacher"):
            self.teacher_hook.momentum_update(self.model, self.teacher_hook.momentum)


def convolution_backward_flops(
    gradient: list[int], inputs: list[int], weight: list[int], *options: Any, out_shape: Any
) -> int:
    """Operations of ``aten.convolution_backward``: for each gradient those of the forward pass.

    PyTorch's own count takes the weight's gradient of a grouped convolution for a dense one's.
    """
    _bias, _stride, _padding, _dilation, transposed, _output_padding, _groups, made = options
    return sum(made[:2]) * conv_flop_count(inputs, weight, gradient, transposed)


OperationCounter = partial(
    FlopCounterMode,
    custom_mapping={torch.ops.aten.convolution_backward: convolution_backward_flops},
)


def floor(trainer: Trainer) -> float:
    """The least milliseconds of a step: its work at the rate of a product of matrices."""
    # Fused attention is not counted on every device.
    with OperationCounter(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        trainer.step()
    dtype = getattr(trainer.optim_wrapper, "cast_dtype", None) or torch.float32
    return counter.get_total_flops() / matmul_rate(get_device(), dtype) / 1e9


def stated_mean_field(
    probs: Tensor,
    box_masks: Tensor,
    images: Tensor,
    zeta: float,
    omega: float,
    kernel_size: int,
    num_steps: int,
) -> Tensor:
    """The baseline's, called as :func:`mean_field` is."""
    if (omega, kernel_size) != (1, 3):
        raise ValueError("the baseline is the mean field with ω 1 and 3 × 3; use --no-baseline")
    return plain_mean_field(probs, box_masks, images, zeta, num_steps)


def time_steps(trainers: list[Trainer], steps: int, warmup: int) -> None:
    """Lets all of them take steps in turn; those of the warm-up are forgotten."""
    for step in track(range(steps + warmup), "measuring", "steps"):
        for trainer in trainers:
            if step == warmup:
                trainer.timer.seconds.clear()
            trainer.step()


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
    parser.add_argument(
        "--baseline",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="whether to time the step as the method states it too",
    )
    parser.add_argument("--out", help="JSON file for the figures")
    parser.add_argument("--cfg-options", nargs="+", action=DictAction, help="override the config")
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    cfg = Config.fromfile(args.config)
    cfg.merge_from_dict(args.cfg_options or {})
    full_precision_without_gpu(cfg)
    init_default_scope("mmdet")
    cfg.model.network.pop("init_cfg", None)
    trainers = [Trainer(cfg, compiled=args.compile)]
    if args.baseline:
        trainers.append(Trainer(cfg, stated=True))
    time_steps(trainers, args.steps, args.warmup)
    figures, *others = (summarize(trainer.timer.seconds) for trainer in trainers)
    least = floor(trainers[-1])  # the baseline is never compiled
    count = cfg.train_dataloader.batch_size
    columns = ["as stated, ms", "ratio"] if others else []
    title = f"a step of {count} crops on {get_device()}"
    table = Table("part", "ms", "share", *columns, title=title)
    for name, value in figures.items():
        if name == "outside the networks":
            cells = ["", f"{value:.1%}", *(f"({other[name]:.1%})" for other in others)]
        else:
            cells = [f"{value:.1f}", f"{value / figures['step']:.1%}"]
            for other in others:
                cells += [f"{other[name]:.1f}", f"{other[name] / value:.1f}"]
        table.add_row(name, *cells)
    if others:
        figures["as stated"] = others[0]
    figures["floor"] = least
    table.add_row("floor of a step", f"{least:.1f}", f"{least / figures['step']:.0%}")
    figures["peak memory, GiB"] = peak_memory()
    table.add_row("peak memory", f"{figures['peak memory, GiB']:.2f} GiB")
    if args.data:
        figures["data"] = 1e3 * time_samples(cfg, args.data) * count
        table.add_row("a batch of data, one process", f"{figures['data']:.1f}")
    Console().print(table)
    if args.out:
        write_json(args.out, figures, 1)


if __name__ == "__main__":
    main()
