#!/usr/bin/env python
# SPDX-License-Identifier: Apache-2.0
"""Writes masks without any learning, for comparison: the filled box, an ellipse, or GrabCut."""

from __future__ import annotations

import argparse

from mal_mmdet.apis import readable_errors
from mal_mmdet.labeling.baselines import BASELINES, label_with_baseline


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("method", choices=BASELINES)
    parser.add_argument("--ann-file", required=True, help="COCO file with the boxes")
    parser.add_argument("--img-dir", required=True, help="folder of the images")
    parser.add_argument("--out", required=True, help="COCO file to write")
    parser.add_argument(
        "--allow-outside",
        action="store_true",
        help="read images that the COCO file names outside the folder of the images",
    )
    return parser.parse_args()


if __name__ == "__main__":
    with readable_errors():
        args = parse_args()
        label_with_baseline(args.method, args.ann_file, args.img_dir, args.out, args.allow_outside)
        print(f"labels: {args.out}")
