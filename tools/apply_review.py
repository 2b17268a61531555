#!/usr/bin/env python
# SPDX-License-Identifier: Apache-2.0
"""Applies the decisions that a review page exported to its label file, see docs/review.md."""

from __future__ import annotations

import argparse

from mal_mmdet.apis import readable_errors
from mal_mmdet.labeling import REJECTED, apply_review


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("labels", help="COCO file that the page was made of")
    parser.add_argument("decisions", help="JSON file that the page exported")
    parser.add_argument("--out", required=True, help="COCO file to write")
    parser.add_argument(
        "--rejected",
        choices=REJECTED,
        default="drop",
        help="leave rejected masks out, or mark them as crowd (default: %(default)s)",
    )
    return parser.parse_args()


if __name__ == "__main__":
    with readable_errors():
        args = parse_args()
        counts = apply_review(args.labels, args.decisions, args.out, args.rejected)
        print(f"labels: {args.out} ({', '.join(f'{n} {name}' for name, n in counts.items())})")
