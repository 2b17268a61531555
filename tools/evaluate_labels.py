#!/usr/bin/env python
# SPDX-License-Identifier: Apache-2.0
"""Compares the masks of a label file with human masks, matched by annotation id."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from mal_mmdet.apis import readable_errors
from mal_mmdet.evaluation import evaluate_label_files
from mal_mmdet.evaluation.category_groups import PRESETS
from mal_mmdet.labeling import refuse_input, without_nan, write_json


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("pred", help="COCO file with predicted masks")
    parser.add_argument("truth", help="COCO file with human masks")
    parser.add_argument("--classwise", action="store_true", help="also category by category")
    parser.add_argument(
        "--groups",
        help="also by group of categories: 'coco' for things and semi-stuff, or a JSON file that "
        "maps a group's name to a list of category names",
    )
    parser.add_argument(
        "--boundary", action="store_true", help="also IoU of the boundary regions (Boundary IoU)"
    )
    parser.add_argument("--out", help="JSON file for the figures")
    args = parser.parse_args()
    if args.groups and args.groups not in PRESETS:
        try:
            args.groups = json.loads(Path(args.groups).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            parser.error(f"--groups takes {list(PRESETS)} or a JSON file: {error}")
    return args


def main() -> None:
    args = parse_args()
    if args.out:
        refuse_input(args.out, args.pred, args.truth)
    options = dict(classwise=args.classwise, groups=args.groups, boundary=args.boundary)
    figures = evaluate_label_files(args.pred, args.truth, **options)
    columns = ["miou", "boundary_miou"] if args.boundary else ["miou"]
    headers = ["mean IoU", "Boundary IoU"][: len(columns)]
    if args.out:
        write_json(args.out, without_nan(figures), indent=1)
    title = escape(f"{args.pred} against {args.truth}")
    table = Table("over", *headers, "boxes", title=title)
    rows = {
        "": "instances",
        "_category": "categories",
        "_small": "small boxes",
        "_medium": "medium boxes",
        "_large": "large boxes",
    }
    for key in figures:
        if key.startswith(("miou_group/", "miou_category/")):
            rows[key.removeprefix("miou")] = key.split("/", 1)[1]
    section = ""
    for key, name in rows.items():
        kind = key.split("/")[0] if "/" in key else ""
        if kind != section:
            table.add_section()
            section = kind
        values = (f"{figures[column + key]:.4f}" for column in columns)
        table.add_row(escape(name), *values, str(figures.get(f"num{key}", "")))
    Console().print(table)
    if figures["num_missing"]:
        print(f"{figures['num_missing']} boxes have no mask and count as IoU 0")
    if figures["num_human"]:
        print(f"{figures['num_human']} masks are human ones that labeling kept, and count as well")


if __name__ == "__main__":
    with readable_errors():
        main()
