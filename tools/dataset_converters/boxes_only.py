#!/usr/bin/env python
# SPDX-License-Identifier: Apache-2.0
"""Strips the masks from a COCO file and sets every area to the box's: what MAL may see."""

from __future__ import annotations

import argparse

from mal_mmdet.labeling import read_coco, strip_masks, write_json


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("instances", help="COCO file")
    parser.add_argument("boxes", help="COCO file to write")
    return parser.parse_args()


if __name__ == "__main__":
    args = parse_args()
    write_json(args.boxes, strip_masks(read_coco(args.instances)))
    print(f"boxes: {args.boxes}")
