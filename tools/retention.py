#!/usr/bin/env python
# SPDX-License-Identifier: Apache-2.0
"""Trains a detector on human masks and on MAL's, and measures how much of its AP remains."""

from __future__ import annotations

import argparse
from pathlib import Path

from mmengine.dist import is_main_process
from rich.console import Console
from rich.markdown import Markdown

from mal_mmdet.apis import (
    Row,
    add_runner_arguments,
    measure_retention,
    readable_errors,
    set_local_rank,
)
from mal_mmdet.checkpoints import trusting_checkpoints
from mal_mmdet.labeling.baselines import fill_boxes


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("config", help="config file, or mmdet::path/of/a/stock/config.py")
    parser.add_argument("--human", required=True, help="COCO file with human masks to train on")
    parser.add_argument("--mal", required=True, help="the same boxes with MAL's masks")
    parser.add_argument("--val", required=True, help="COCO file with human masks to measure with")
    parser.add_argument("--boxes", action="store_true", help="train on filled boxes as well")
    parser.add_argument(
        "--row",
        nargs=3,
        action="append",
        default=[],
        metavar=("NAME", "CONFIG", "LABELS"),
        help="another detector, or other labels of the same images; may be given many times",
    )
    parser.add_argument("--seeds", type=int, default=3, help="trainings of each row (default: 3)")
    parser.add_argument("--data-root", help="folder of the data, as of tools/train.py")
    parser.add_argument("--img-dir", help="folder of the training images")
    parser.add_argument("--val-img-dir", help="folder of the images of --val")
    add_runner_arguments(parser)
    parser.set_defaults(work_dir="work_dirs/retention")
    args = parser.parse_args()
    if args.seeds < 1:
        parser.error(f"--seeds is {args.seeds}, expected at least 1")
    return args


def main() -> None:
    args = parse_args()
    set_local_rank(args)
    work_dir = Path(args.work_dir)
    rows = [Row("human masks", args.config, args.human), Row("MAL", args.config, args.mal)]
    if args.boxes:
        filled = work_dir / "instances_filled_boxes.json"
        fill_boxes(args.mal, filled)  # every rank writes the same
        rows.append(Row("filled boxes", args.config, filled))
    rows += [Row(*row) for row in args.row]
    with trusting_checkpoints(args.trust_checkpoint):
        measure_retention(
            rows,
            args.val,
            work_dir,
            seeds=args.seeds,
            data_root=args.data_root,
            img_dir=args.img_dir,
            val_img_dir=args.val_img_dir,
            options=args.cfg_options,
            launcher=args.launcher,
        )
    if not is_main_process():
        return
    table = work_dir / "retention.md"
    Console().print(Markdown(table.read_text(encoding="utf-8")))
    print(f"tables: {table}, {work_dir / 'retention.json'}\nchart:  {work_dir / 'retention.png'}")


if __name__ == "__main__":
    with readable_errors():
        main()
