#!/usr/bin/env python
# SPDX-License-Identifier: Apache-2.0
"""Compares the masks of a label file with human masks, matched by annotation id."""

from __future__ import annotations

import argparse

from rich.console import Console
from rich.table import Table

from mal_mmdet.evaluation import evaluate_label_files
from mal_mmdet.labeling import without_nan, write_json


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("pred", help="COCO file with predicted masks")
    parser.add_argument("truth", help="COCO file with human masks")
    parser.add_argument("--out", help="JSON file for the figures")
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    figures = evaluate_label_files(args.pred, args.truth)
    table = Table("mean IoU over", "value", "boxes", title=f"{args.pred} against {args.truth}")
    for name, key in {
        "instances": "",
        "categories": "_category",
        "small boxes": "_small",
        "medium boxes": "_medium",
        "large boxes": "_large",
    }.items():
        table.add_row(name, f"{figures[f'miou{key}']:.4f}", str(figures.get(f"num{key}", "")))
    Console().print(table)
    if figures["num_missing"]:
        print(f"{figures['num_missing']} boxes have no mask and count as IoU 0")
    if args.out:
        write_json(args.out, without_nan(figures), indent=1)


if __name__ == "__main__":
    main()
