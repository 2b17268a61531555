#!/usr/bin/env python
# SPDX-License-Identifier: Apache-2.0
"""Writes the masks of a COCO file for YOLO, LabelMe or CVAT. Crowd annotations are left out."""

from __future__ import annotations

import argparse

from mal_mmdet.apis import readable_errors
from mal_mmdet.labeling import EXPORTS, export_labels, read_coco


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("format", choices=EXPORTS, help="format to write")
    parser.add_argument("labels", help="COCO file with masks")
    parser.add_argument("out_dir", help="folder to write to")
    parser.add_argument("--overwrite", action="store_true", help="replace files that are there")
    return parser.parse_args()


if __name__ == "__main__":
    with readable_errors():
        args = parse_args()
        crowds = export_labels(args.format, read_coco(args.labels), args.out_dir, args.overwrite)
        print(f"labels: {args.out_dir}" + (f" (without {crowds} crowds)" if crowds else ""))
