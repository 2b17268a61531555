#!/usr/bin/env python
# SPDX-License-Identifier: Apache-2.0
"""Makes the demo data: objects with exact masks, composed from scikit-image's photographs."""

from __future__ import annotations

import argparse

from mal_mmdet.apis import readable_errors
from mal_mmdet.datasets.demo_dataset import make_demo_dataset


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--out", default="data/demo", help="folder to write")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--num-train", type=int, default=400, help="training images")
    parser.add_argument("--num-val", type=int, default=100, help="validation images")
    return parser.parse_args()


if __name__ == "__main__":
    with readable_errors():
        args = parse_args()
        make_demo_dataset(args.out, args.seed, args.num_train, args.num_val)
        print(f"demo data: {args.out}")
