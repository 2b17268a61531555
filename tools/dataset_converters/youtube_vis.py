#!/usr/bin/env python
# SPDX-License-Identifier: Apache-2.0
"""YouTube-VIS: splits boxes into single frames for labeling, and merges the masks back.

Exit code: 0 when every box got a mask, 3 when some were left out.
"""

from __future__ import annotations

import argparse
import sys

from mal_mmdet.apis import readable_errors
from mal_mmdet.labeling import (
    merge_masks,
    read_coco,
    read_vis,
    refuse_input,
    split_frames,
    write_json,
)

SOME_FAILED = 3


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    split = commands.add_parser("split", help="boxes of all frames as a COCO file")
    split.add_argument("vis", help="YouTube-VIS file with boxes")
    split.add_argument("out", help="COCO file to write")
    merge = commands.add_parser("merge", help="masks of all frames into the YouTube-VIS file")
    merge.add_argument("vis", help="the YouTube-VIS file that was split")
    merge.add_argument("labels", help="what generate_labels.py made of the split file")
    merge.add_argument("out", help="YouTube-VIS file to write")
    return parser.parse_args()


def main() -> int:
    args = parse_args()
    refuse_input(args.out, args.vis, getattr(args, "labels", None))
    vis = read_vis(args.vis)
    if args.command == "split":
        write_json(args.out, split_frames(vis))
        print(f"boxes: {args.out}")
        return 0
    merged, missing = merge_masks(vis, read_coco(args.labels))
    write_json(args.out, merged)
    print(f"labels: {args.out}")
    if missing:
        print(
            f"{missing} boxes were left out: without a mask (see the report of {args.labels}), or "
            "with one of low quality"
        )
        return SOME_FAILED
    return 0


if __name__ == "__main__":
    with readable_errors():
        sys.exit(main())
