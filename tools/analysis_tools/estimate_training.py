#!/usr/bin/env python
# SPDX-License-Identifier: Apache-2.0
"""What training on many GPUs would take, on paper: work, crops per second, gradients to exchange.

The work of a crop is counted on the config's own network. The rest are assumptions, by default
those of NVIDIA A100 GPUs, eight to a machine. Nothing is measured here.
"""

from __future__ import annotations

import argparse

import torch
from mmdet.registry import MODELS
from mmengine.config import Config
from mmengine.registry import init_default_scope
from rich.console import Console
from rich.table import Table
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from mal_mmdet.models import MaskAutoLabeler

BYTES = 4  # DDP exchanges gradients in the weights' type, float32, also in mixed precision
PER_MACHINE = 8
GROUPS = dict(medium=9e3, large=1e4)  # areas in px² on both sides of COCO's 96²


def gigaflop(model: MaskAutoLabeler, size: int, area: float) -> dict[str, float]:
    """What a crop costs in training; a multiplication and an addition are two operations.

    Args:
        model: On the CPU.
        size: Side of the crop in pixels.
        area: Of the box in image pixels; the decoder's resolution depends on it.

    Returns:
        GFLOP of the ``student``, forward and backward, and of the ``teacher``, forward.
    """
    crop, area = torch.zeros(1, 3, size, size), torch.tensor([area])
    figures = {}
    with sdpa_kernel(SDPBackend.MATH):  # the fused kernel of CPUs is not counted
        with FlopCounterMode(display=False) as counter:
            model.student(crop, area).sum().backward()
        figures["student"] = counter.get_total_flops() / 1e9
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            model.teacher(crop, area)
        figures["teacher"] = counter.get_total_flops() / 1e9
    return figures


def all_reduce_bytes(parameters: int, gpus: int) -> float:
    """Bytes that go from each GPU to the next in a step: the gradients, 2 (n − 1) / n times.

    In a ring as many leave a machine, whatever the number of its GPUs.
    """
    return parameters * BYTES * 2 * (gpus - 1) / gpus


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("config", help="config of phase 1")
    parser.add_argument("--gpus", type=int, nargs="+", default=[8, 64])
    parser.add_argument("--crops", type=float, default=4.7e6, help="of the whole training")
    parser.add_argument("--large", type=float, default=0.54, help="share of boxes over 96² px")
    parser.add_argument("--tflops", type=float, default=312, help="of a GPU at best")
    parser.add_argument("--utilization", type=float, default=0.35, help="share of that in reach")
    parser.add_argument("--nvlink", type=float, default=300, help="GB/s of a GPU in its machine")
    parser.add_argument("--network", type=float, default=25, help="GB/s of a machine to others")
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    init_default_scope("mmdet")
    cfg = Config.fromfile(args.config)
    cfg.model.network.pop("init_cfg", None)
    model = MODELS.build(cfg.model).train()
    pipeline, batch = cfg.train_dataloader.dataset.pipeline, cfg.train_dataloader.batch_size
    work = {name: gigaflop(model, pipeline[1].size, area) for name, area in GROUPS.items()}
    parameters = sum(p.numel() for p in model.student.parameters())
    mean = (1 - args.large) * sum(work["medium"].values()) + args.large * sum(
        work["large"].values()
    )

    console = Console()
    for name, parts in work.items():
        student, teacher = parts["student"], parts["teacher"]
        console.print(f"{name} box: student {student:.3g} GFLOP, teacher {teacher:.3g} GFLOP")
    console.print(f"mean crop: {mean:.3g} GFLOP; {parameters / 1e6:.3g} M parameters a network")
    rate = 1e3 * args.tflops * args.utilization / mean  # crops per second and GPU
    table = Table("GPUs", "crops/s", "hours", "step", "gradients sent", "takes")
    for gpus in args.gpus:
        sent = all_reduce_bytes(parameters, gpus)
        bandwidth = 1e9 * (args.nvlink if gpus <= PER_MACHINE else args.network)
        table.add_row(
            f"{gpus}",
            f"{rate * gpus:.0f}",
            f"{args.crops / (rate * gpus) / 3600:.3g}",
            f"{1e3 * batch / rate:.3g} ms",
            f"{sent / 1e6:.3g} MB",
            f"{1e3 * sent / bandwidth:.3g} ms",
        )
    console.print(table)


if __name__ == "__main__":
    main()
