#!/usr/bin/env python
# SPDX-License-Identifier: Apache-2.0
"""Trains and tests a list of configs and writes one table of their mask IoU (CSV, Markdown)."""

from __future__ import annotations

import argparse

from mmengine.dist import is_main_process
from rich.console import Console
from rich.markdown import Markdown

from mal_mmdet.apis import add_runner_arguments, readable_errors, run_ablation, set_local_rank
from mal_mmdet.checkpoints import trusting_checkpoints


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("configs", nargs="+", help="configs, such as configs/mal/ablations/*.py")
    parser.add_argument(
        "--base",
        help="config that all others inherit from instead of their own base, and the first row: "
        "the changes then run on its data and at its scale",
    )
    add_runner_arguments(parser)
    parser.set_defaults(work_dir="work_dirs/ablation")
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    set_local_rank(args)
    with trusting_checkpoints(args.trust_checkpoint):
        run_ablation(args.configs, args.work_dir, args.base, args.cfg_options, args.launcher)
    if not is_main_process():
        return
    table = f"{args.work_dir}/table.md"
    with open(table, encoding="utf-8") as file:
        Console().print(Markdown(file.read()))
    print(f"tables: {table}, {args.work_dir}/table.csv")


if __name__ == "__main__":
    with readable_errors():
        main()
