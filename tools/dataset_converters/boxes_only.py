#!/usr/bin/env python
# SPDX-License-Identifier: Apache-2.0
"""Strips the masks from a COCO file and sets every area to the box's: what MAL may see."""

from __future__ import annotations

import argparse

from mal_mmdet.apis import readable_errors
from mal_mmdet.labeling import write_boxes_only


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("instances", help="COCO file")
    parser.add_argument("boxes", help="COCO file to write")
    return parser.parse_args()


if __name__ == "__main__":
    with readable_errors():
        args = parse_args()
        write_boxes_only(args.instances, args.boxes)
        print(f"boxes: {args.boxes}")
