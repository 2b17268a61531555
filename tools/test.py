#!/usr/bin/env python
# SPDX-License-Identifier: Apache-2.0
"""Tests a checkpoint: mask IoU of MAL's masks in phase 1, AP of a detector in phase 2."""

from __future__ import annotations

import argparse

from mmdet.engine.hooks.utils import trigger_visualization_hook
from mmdet.evaluation import DumpDetResults
from mmengine.runner import Runner

from mal_mmdet.apis import (
    add_runner_arguments,
    load_config,
    load_weights,
    readable_errors,
    use_detections,
    use_windows,
)
from mal_mmdet.checkpoints import trusting_checkpoints
from mal_mmdet.engine import ProgressHook


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("config", help="config file")
    parser.add_argument(
        "checkpoint",
        nargs="?",
        help="checkpoint file; without it the weights that training would start from",
    )
    parser.add_argument(
        "--boxes",
        help="COCO results file of a detector: phase 1 segments its boxes, and the figure is "
        "COCO's mask AP without phase 2",
    )
    parser.add_argument("--out", help="pickle file for the predictions")
    parser.add_argument("--show", action="store_true", help="show the predictions in a window")
    parser.add_argument("--show-dir", help="folder for drawn predictions, in the work dir")
    parser.add_argument("--tta", action="store_true", help="the config's test-time augmentation")
    parser.add_argument("--wait-time", type=float, default=2, help="seconds a window stays")
    add_runner_arguments(parser)
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    cfg = load_config(args)
    cfg.load_from, cfg.resume = None, False  # the weights are the checkpoint's, no others
    if args.boxes:
        use_detections(cfg, args.boxes)
    if args.show or args.show_dir:
        cfg = trigger_visualization_hook(cfg, args)
    if args.tta:
        if "tta_model" not in cfg or "tta_pipeline" not in cfg:
            raise SystemExit(
                f"--tta needs tta_model and tta_pipeline in {args.config}; for phase 1 "
                "--cfg-options model.flip_test=True is the same"
            )
        cfg.model = dict(**cfg.tta_model, module=cfg.model)
        cfg.test_dataloader.dataset.pipeline = cfg.tta_pipeline
    with trusting_checkpoints(args.trust_checkpoint):
        runner = Runner.from_cfg(cfg)
        if not len(runner.test_dataloader.dataset):
            raise SystemExit("there is nothing to test: no image has a usable box")
        load_weights(runner.model, args.checkpoint)
    if args.out:
        runner.test_evaluator.metrics.append(DumpDetResults(out_file_path=args.out))
    use_windows(runner)
    runner.register_hook(ProgressHook())
    runner.test()


if __name__ == "__main__":
    with readable_errors():
        main()
