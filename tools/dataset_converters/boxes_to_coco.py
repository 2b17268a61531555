#!/usr/bin/env python
# SPDX-License-Identifier: Apache-2.0
"""Writes the boxes that a config trains on as a COCO file: what generate_labels.py reads.

For data sets whose files are no COCO files, such as PASCAL VOC and OpenImages.
"""

from __future__ import annotations

import argparse

from mmengine.config import DictAction

from mal_mmdet.apis import read_config, readable_errors
from mal_mmdet.datasets import boxes_to_coco, build_training_boxes
from mal_mmdet.labeling import refuse_input, write_json


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("config", help="config of phase 1")
    parser.add_argument("boxes", help="COCO file to write")
    parser.add_argument(
        "--img-dir", required=True, help="folder that the names of the images are relative to"
    )
    parser.add_argument(
        "--cfg-options",
        nargs="+",
        action=DictAction,
        help="settings that override the config's, such as another part of the data set in "
        "train_dataloader.dataset.dataset.ann_file",
    )
    return parser.parse_args()


if __name__ == "__main__":
    with readable_errors():
        args = parse_args()
        cfg = read_config(args.config)
        cfg.merge_from_dict(args.cfg_options or {})
        dataset = build_training_boxes(cfg)
        refuse_input(args.boxes, getattr(dataset, "ann_file", None))  # several together have none
        write_json(args.boxes, boxes_to_coco(dataset, args.img_dir))
        print(f"boxes: {args.boxes}")
