#!/usr/bin/env python
# SPDX-License-Identifier: Apache-2.0
"""Trains any config, phase 1 or phase 2.

SIGTERM and SIGINT write a checkpoint after the iteration; the exit code is then 143 or 130, and
--resume goes on from there. A second signal ends at once.
"""

from __future__ import annotations

import argparse

from mmdet.registry import RUNNERS

from mal_mmdet.apis import (
    add_runner_arguments,
    check_labels,
    full_precision_without_gpu,
    load_config,
    readable_errors,
    refuse_sharded_validation,
    resume_latest,
    use_labels,
    use_safe_checkpoints,
)
from mal_mmdet.checkpoints import trusting_checkpoints
from mal_mmdet.engine import ProgressHook, stop_signals


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("config", help="config file, or mmdet::path/of/a/stock/config.py")
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
    labels = parser.add_argument_group(
        "labels", "train a detector on a label file, without a config of one's own (phase 2)"
    )
    labels.add_argument("--train-labels", help="COCO file with masks; its categories are learned")
    labels.add_argument("--val-labels", help="COCO file to validate with, of the same categories")
    labels.add_argument(
        "--data-root", help="folder of the data; images are where the config's data_prefix says"
    )
    labels.add_argument("--img-dir", help="folder of the training images, wherever it is")
    labels.add_argument("--val-img-dir", help="folder of the images of --val-labels")
    add_runner_arguments(parser)
    args = parser.parse_args()
    options = ("val_labels", "data_root", "img_dir", "val_img_dir")
    if not args.train_labels and any(getattr(args, name) for name in options):
        parser.error("--val-labels, --data-root, --img-dir, --val-img-dir need --train-labels")
    if args.val_img_dir and not args.val_labels:
        parser.error("--val-img-dir needs --val-labels")
    return args


def main() -> None:
    args = parse_args()
    cfg = load_config(args)
    if args.train_labels:
        use_labels(
            cfg,
            args.train_labels,
            val_labels=args.val_labels,
            data_root=args.data_root,
            img_dir=args.img_dir,
            val_img_dir=args.val_img_dir,
        )
    else:
        check_labels(cfg)
    if args.amp:
        cfg.optim_wrapper.type = "AmpOptimWrapper"
        cfg.optim_wrapper.setdefault("loss_scale", "dynamic")
    refuse_sharded_validation(cfg)
    full_precision_without_gpu(cfg)
    if args.auto_scale_lr:
        if "base_batch_size" not in cfg.get("auto_scale_lr", {}):
            raise SystemExit(
                f"--auto-scale-lr needs auto_scale_lr.base_batch_size in {args.config}"
            )
        cfg.auto_scale_lr.enable = True
    use_safe_checkpoints(cfg)
    if args.resume == "auto":
        resume_latest(cfg)
    elif args.resume:
        cfg.resume, cfg.load_from = True, args.resume
    with trusting_checkpoints(args.trust_checkpoint), stop_signals.handled():
        runner = RUNNERS.build(cfg)
        runner.register_hook(ProgressHook())
        runner.train()


if __name__ == "__main__":
    with readable_errors():
        main()
