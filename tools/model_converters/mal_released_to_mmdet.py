#!/usr/bin/env python
# SPDX-License-Identifier: Apache-2.0
"""Converts a published MAL checkpoint (the authors' or NVIDIA TAO's) for this package."""

from __future__ import annotations

import argparse

import torch

from mal_mmdet.apis import readable_errors
from mal_mmdet.labeling import refuse_input, replacing
from mal_mmdet.models.released_checkpoint import convert_released, load_tensors


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("input", help="published checkpoint")
    parser.add_argument("output", help="checkpoint to write")
    parser.add_argument("--crop-size", type=int, default=512, help="side of the crops in pixels")
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    refuse_input(args.output, args.input)
    try:
        state_dict, found = convert_released(load_tensors(args.input), args.crop_size)
    except (FileNotFoundError, ValueError) as error:
        raise SystemExit(f"{args.input} cannot be converted: {error}") from error
    with replacing(args.output) as temporary:
        torch.save(dict(state_dict=state_dict, meta=found), temporary)
    print(", ".join(f"{key}: {value}" for key, value in found.items()))
    print(f"checkpoint: {args.output}")


if __name__ == "__main__":
    with readable_errors():
        main()
