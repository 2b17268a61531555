#!/usr/bin/env python
# SPDX-License-Identifier: Apache-2.0
"""Trains any config, phase 1 or phase 2."""

from __future__ import annotations

import argparse

from mmengine.runner import Runner

from mal_mmdet.apis import add_runner_arguments, full_precision_without_gpu, load_config


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("config", help="config file")
    parser.add_argument("--amp", action="store_true", help="train in mixed precision")
    parser.add_argument(
        "--auto-scale-lr", action="store_true", help="scale the learning rate to the batch size"
    )
    parser.add_argument(
        "--resume",
        nargs="?",
        const="auto",
        help="checkpoint to resume from; without a value, the latest in the work dir",
    )
    add_runner_arguments(parser)
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    cfg = load_config(args)
    if args.amp:
        cfg.optim_wrapper.type = "AmpOptimWrapper"
        cfg.optim_wrapper.setdefault("loss_scale", "dynamic")
    full_precision_without_gpu(cfg)
    if args.auto_scale_lr:
        if "base_batch_size" not in cfg.get("auto_scale_lr", {}):
            raise SystemExit(
                f"--auto-scale-lr needs auto_scale_lr.base_batch_size in {args.config}"
            )
        cfg.auto_scale_lr.enable = True
    if args.resume:
        cfg.resume = True
        cfg.load_from = None if args.resume == "auto" else args.resume
    Runner.from_cfg(cfg).train()


if __name__ == "__main__":
    main()
