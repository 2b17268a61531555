#!/usr/bin/env python
# SPDX-License-Identifier: Apache-2.0
"""Measures with human masks how well the mask_quality of a label file ranks its masks."""

from __future__ import annotations

import argparse

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from mal_mmdet.apis import readable_errors
from mal_mmdet.evaluation import measure_quality


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("pred", help="label file with mask_quality")
    parser.add_argument("truth", help="COCO file with human masks for the same annotation ids")
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    figures = measure_quality(args.pred, args.truth)
    table = Table(title=escape(f"mask_quality of {args.pred} against {args.truth}"))
    rows = {
        "rank correlation with IoU (Spearman)": "spearman",
        "mean IoU of all masks": "miou",
        "mean IoU of the best 80 %": "miou_best",
        "mean IoU of the worst 20 %": "miou_worst",
    }
    table.add_column("figure")
    table.add_column("value", justify="right")
    table.add_row("masks", str(figures["num"]))
    for name, key in rows.items():
        table.add_row(name, f"{figures[key]:.4f}")
    Console().print(table)


if __name__ == "__main__":
    with readable_errors():
        main()
