#!/usr/bin/env python
# SPDX-License-Identifier: Apache-2.0
"""Writes boxes of YOLO, PASCAL VOC, LabelMe or CSV files as a COCO file, ready to be labeled."""

from __future__ import annotations

import argparse
from pathlib import Path

from mal_mmdet.apis import readable_errors
from mal_mmdet.labeling import (
    ENDINGS,
    IMPORTS,
    files_in,
    import_boxes,
    read_classes,
    refuse_input,
    write_json,
)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("format", choices=IMPORTS, help="format of the boxes")
    parser.add_argument("source", help="folder of the annotations; the file for csv")
    parser.add_argument("out", help="COCO file to write")
    parser.add_argument(
        "--img-dir", help="folder of the images (default: where the annotations are)"
    )
    parser.add_argument(
        "--classes",
        nargs="+",
        metavar="NAME",
        help="classes in order, or a file of them: data.yaml, or text with one a line (default: "
        "those that occur; yolo needs them)",
    )
    return parser.parse_args()


if __name__ == "__main__":
    with readable_errors():
        args = parse_args()
        refuse_input(args.out, args.source, *files_in(Path(args.source), ENDINGS[args.format]))
        classes = args.classes and read_classes(args.classes)
        coco = import_boxes(args.format, args.source, args.img_dir, classes)
        write_json(args.out, coco)
        print(f"boxes: {args.out} ({len(coco['annotations'])} in {len(coco['images'])} images)")
