#!/usr/bin/env python
# SPDX-License-Identifier: Apache-2.0
"""Writes a page to review the masks of a label file in a browser, see docs/review.md."""

from __future__ import annotations

import argparse
from pathlib import Path

from mal_mmdet.apis import readable_errors
from mal_mmdet.visualization import write_review_page


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("labels", help="COCO file with masks")
    parser.add_argument("--img-dir", required=True, help="folder of the images")
    parser.add_argument("--out", required=True, help="folder to write; open index.html in it")
    parser.add_argument("--gt", help="COCO file with human masks of the same ids, for their IoU")
    parser.add_argument(
        "--size",
        type=int,
        default=128,
        choices=range(32, 513),
        metavar="PIXELS",
        help="side of a thumbnail, 32 to 512 (default: %(default)s)",
    )
    parser.add_argument(
        "--overwrite", action="store_true", help="replace the review page that is there"
    )
    parser.add_argument(
        "--allow-outside",
        action="store_true",
        help="read images that the COCO file names outside the folder of the images",
    )
    return parser.parse_args()


if __name__ == "__main__":
    with readable_errors():
        args = parse_args()
        count = write_review_page(
            args.labels,
            args.img_dir,
            args.out,
            args.gt,
            size=args.size,
            overwrite=args.overwrite,
            allow_outside=args.allow_outside,
        )
        print(f"review: {Path(args.out) / 'index.html'} ({count} boxes)")
