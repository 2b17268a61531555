#!/usr/bin/env python
# SPDX-License-Identifier: Apache-2.0
"""Draws boxes chosen at random: image and box (green), predicted mask (orange), human (blue)."""

from __future__ import annotations

import argparse

from mal_mmdet.visualization import draw_label_sheet


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("pred", help="COCO file with predicted masks")
    parser.add_argument("truth", help="COCO file with human masks")
    parser.add_argument("--img-dir", required=True, help="folder of the images")
    parser.add_argument("--out", default="labels.png", help="picture to write")
    parser.add_argument("--number", type=int, default=15, help="how many boxes")
    parser.add_argument("--size", type=int, default=128, help="side of a crop in pixels")
    parser.add_argument("--seed", type=int, default=0, help="seed of the choice")
    return parser.parse_args()


if __name__ == "__main__":
    args = parse_args()
    draw_label_sheet(
        args.pred,
        args.truth,
        args.img_dir,
        args.out,
        number=args.number,
        size=args.size,
        seed=args.seed,
    )
    print(f"picture: {args.out}")
