# SPDX-License-Identifier: Apache-2.0
"""What the command-line tools share: arguments, configs and launchers."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import torch
from mmengine.config import Config, DictAction


def add_runner_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments that mmdet's tools have in common."""
    parser.add_argument("--work-dir", help="folder for logs and results")
    parser.add_argument(
        "--cfg-options",
        nargs="+",
        action=DictAction,
        help='settings that override the config\'s, as key=value; lists as key="[a,b]"',
    )
    parser.add_argument("--launcher", choices=["none", "pytorch", "slurm", "mpi"], default="none")
    parser.add_argument("--local_rank", "--local-rank", type=int, default=0)


def load_config(args: argparse.Namespace) -> Config:
    """Reads a config and applies the arguments of :func:`add_runner_arguments`.

    On a machine without a GPU the launcher ``pytorch`` starts gloo processes here, since
    MMEngine's own start asks for a GPU.
    """
    os.environ.setdefault("LOCAL_RANK", str(args.local_rank))
    cfg = Config.fromfile(args.config)
    cfg.launcher = args.launcher
    if args.cfg_options:
        cfg.merge_from_dict(args.cfg_options)
    if args.work_dir:
        cfg.work_dir = args.work_dir
    cfg.setdefault("work_dir", str(Path("work_dirs") / Path(args.config).stem))
    if args.launcher == "pytorch" and not torch.cuda.is_available():
        torch.distributed.init_process_group("gloo")
        cfg.model_wrapper_cfg = dict(
            type="MMDistributedDataParallel", device_ids=None, broadcast_buffers=False
        )
    return cfg


def full_precision_without_gpu(cfg: Config) -> None:
    """Trains in float32 where there is no GPU, in place: MMEngine's AMP needs one."""
    if torch.cuda.is_available() or cfg.optim_wrapper.type != "AmpOptimWrapper":
        return
    print("no GPU found: training in float32 instead of mixed precision")
    cfg.optim_wrapper.type = "OptimWrapper"
    for key in ("dtype", "loss_scale"):
        cfg.optim_wrapper.pop(key, None)


def use_detections(cfg: Config, detections: str | Path) -> None:
    """Lets a config of phase 1 test on the boxes of a detector, in place.

    The metric becomes COCO's mask AP against the human masks that the config compares with.

    Args:
        cfg: Its ``test_evaluator`` is a :class:`MaskIoUMetric`.
        detections: COCO results file with scores.
    """
    cfg.test_dataloader.dataset.dataset.detections = str(detections)
    cfg.test_evaluator = dict(
        type="CocoMetric", ann_file=cfg.test_evaluator.ann_file, metric="segm"
    )


def use_boxes(cfg: Config, ann_file: str | Path, img_dir: str | Path) -> None:
    """Lets the test data set of a config of phase 1 read the boxes of a COCO file, in place."""
    cfg.test_dataloader.dataset.dataset.update(
        type="CocoBoxDataset",
        data_root="",
        ann_file=str(ann_file),
        data_prefix=dict(img=str(img_dir)),
    )
