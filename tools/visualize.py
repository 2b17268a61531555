#!/usr/bin/env python
# SPDX-License-Identifier: Apache-2.0
"""Draws predicted beside human masks, or attention maps of the encoder."""

from __future__ import annotations

import argparse

from mmengine.config import DictAction

from mal_mmdet.apis import add_trust_argument, draw_attention_maps, read_config, readable_errors
from mal_mmdet.apis.attention import ATTENTION_SOURCES
from mal_mmdet.checkpoints import trusting_checkpoints
from mal_mmdet.visualization import draw_label_sheet
from mal_mmdet.visualization.label_sheet import ORDERS


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    shown = dict(formatter_class=argparse.ArgumentDefaultsHelpFormatter)

    text = "image and box (green), predicted mask (orange) with its IoU, human mask (blue)"
    masks = commands.add_parser("masks", help=text, description=f"Draws {text}.", **shown)
    masks.add_argument("pred", help="COCO file with predicted masks")
    masks.add_argument("truth", help="COCO file with human masks")
    masks.add_argument("--img-dir", required=True, help="folder of the images")
    masks.add_argument("--out", default="labels.png", help="picture to write")
    masks.add_argument("--number", type=int, default=15, help="how many boxes")
    masks.add_argument(
        "--order", choices=ORDERS, default="random", help="which boxes: best and worst are by IoU"
    )
    masks.add_argument("--size", type=int, default=128, help="side of a crop in pixels")
    masks.add_argument("--seed", type=int, default=0, help="seed of the random choice")
    masks.add_argument(
        "--allow-outside",
        action="store_true",
        help="read images that the COCO files name outside the folder of the images",
    )

    text = "what the tokens inside a box look at, in some layers of a ViT; a picture a box"
    attention = commands.add_parser("attention", help=text, description=f"Draws {text}.", **shown)
    attention.add_argument("config", help="config of a MaskAutoLabeler")
    attention.add_argument("checkpoint", help="its trained weights")
    attention.add_argument("--ann-file", required=True, help="COCO file with the boxes")
    attention.add_argument("--img-dir", required=True, help="folder of the images")
    attention.add_argument("--out", required=True, help="folder for the pictures")
    which = attention.add_mutually_exclusive_group()
    which.add_argument("--ids", nargs="+", metavar="ID", help="annotations to draw")
    which.add_argument("--number", type=int, default=8, help="how many boxes to choose at random")
    attention.add_argument(
        "--layers",
        nargs="+",
        type=int,
        metavar="L",
        help="layers to draw, from 1; by default the last of each third of the encoder",
    )
    attention.add_argument("--source", choices=ATTENTION_SOURCES, default="student")
    attention.add_argument("--size", type=int, default=256, help="side of a panel in pixels")
    attention.add_argument("--seed", type=int, default=0, help="seed of the random choice")
    attention.add_argument(
        "--cfg-options",
        nargs="+",
        action=DictAction,
        default={},
        help="settings that override the config's, as key=value",
    )
    add_trust_argument(attention)
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    if args.command == "masks":
        draw_label_sheet(
            args.pred,
            args.truth,
            args.img_dir,
            args.out,
            number=args.number,
            size=args.size,
            order=args.order,
            seed=args.seed,
            allow_outside=args.allow_outside,
        )
        print(f"picture: {args.out}")
        return
    cfg = read_config(args.config)
    cfg.merge_from_dict(args.cfg_options)
    with trusting_checkpoints(args.trust_checkpoint):
        paths = draw_attention_maps(
            cfg,
            args.checkpoint,
            args.ann_file,
            args.img_dir,
            args.out,
            ids=args.ids,
            number=args.number,
            layers=args.layers,
            source=args.source,
            size=args.size,
            seed=args.seed,
        )
    for path in paths:
        print(f"picture: {path}")


if __name__ == "__main__":
    with readable_errors():
        main()
