#!/usr/bin/env python
# SPDX-License-Identifier: Apache-2.0
"""Writes a mask for every box of a COCO file, or for every box that a detector found.

Finished masks are kept in <out>.shards until the file is whole: a run that was interrupted goes on
with --resume. Exit code: 0 when every box was labeled, 3 when some could not be; <out>.report.json
then lists them with the reason. 143 or 130 after SIGTERM or SIGINT, which write what is finished to
the disk first; a second signal ends at once. dist_generate_labels.sh makes 1 of all these: there a
label file beside its report says that labeling came to its end.
"""

from __future__ import annotations

import argparse
import os
import sys
from datetime import datetime, timezone

from mmengine.dist import is_main_process

from mal_mmdet.apis import add_runner_arguments, generate_labels, load_config, readable_errors
from mal_mmdet.checkpoints import trusting_checkpoints
from mal_mmdet.engine import stop_signals
from mal_mmdet.labeling import LOW_QUALITY, MASK_FORMATS, report_path
from mal_mmdet.models.mask_auto_labeler import LABEL_SOURCES, PREDICT_DTYPES

SOME_FAILED = 3
# Seconds that a rank which is done waits for the others; one that dies ends the job at once.
RANK_TIMEOUT = 24 * 60 * 60


def source_date() -> str | None:
    """Day in SOURCE_DATE_EPOCH, by which reproducible builds set their date."""
    epoch = os.environ.get("SOURCE_DATE_EPOCH")
    return epoch and datetime.fromtimestamp(int(epoch), timezone.utc).date().isoformat()


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("config", help="config of a MaskAutoLabeler")
    parser.add_argument("checkpoint", help="its trained weights")
    parser.add_argument("--ann-file", required=True, help="COCO file with the boxes")
    parser.add_argument("--img-dir", required=True, help="folder of the images")
    parser.add_argument("--out", required=True, help="COCO file to write")
    parser.add_argument(
        "--boxes",
        help="COCO results file of a detector; its boxes are labeled in place of the annotations, "
        "and the output is a results file with scores and masks",
    )
    parser.add_argument("--source", choices=LABEL_SOURCES, help="whose masks (default: config)")
    parser.add_argument(
        "--flip",
        action=argparse.BooleanOptionalAction,
        help="average with the mirrored crop (default: config)",
    )
    parser.add_argument(
        "--refine",
        action=argparse.BooleanOptionalAction,
        help="refine masks by the colours of the object, of its background and of neighbouring "
        "pixels (default: config)",
    )
    parser.add_argument(
        "--thresholds",
        nargs="+",
        type=float,
        metavar="P",
        help="one threshold, or three for small, medium and large boxes (default: config)",
    )
    parser.add_argument(
        "--margins",
        nargs="+",
        type=float,
        metavar="M",
        help="by which share boxes are expanded; several average as many crops of each box, and "
        "take as many times as long (default: config)",
    )
    parser.add_argument(
        "--mask-format",
        choices=MASK_FORMATS,
        default="rle",
        help="polygon for detectors that ignore RLE, see docs/formats.md (default: %(default)s)",
    )
    parser.add_argument(
        "--only-missing",
        action="store_true",
        help="keep masks that annotations have; label the others",
    )
    parser.add_argument(
        "--allow-outside",
        action="store_true",
        help="read images that the COCO file names outside the folder of the images",
    )
    parser.add_argument(
        "--min-quality",
        type=float,
        default=0.0,
        metavar="Q",
        help="masks with a mask_quality under this are of low quality (default: %(default)s)",
    )
    parser.add_argument(
        "--low-quality",
        choices=LOW_QUALITY,
        default="keep",
        help="what becomes of those: ignore marks them as crowd (default: %(default)s)",
    )
    parser.add_argument(
        "--dtype", choices=PREDICT_DTYPES, help="type to predict in (default: config)"
    )
    parser.add_argument(
        "--date",
        default=source_date(),
        help="written into the file's info (default: from SOURCE_DATE_EPOCH, if that is set)",
    )
    parser.add_argument(
        "--resume", action="store_true", help="go on with what an interrupted run has left"
    )
    add_runner_arguments(parser)
    args = parser.parse_args()
    if args.boxes and args.mask_format != "rle":
        parser.error("--boxes writes a results file, whose masks are RLE: no --mask-format")
    if args.boxes and (args.only_missing or args.low_quality == "ignore"):
        parser.error("--boxes takes neither --only-missing nor --low-quality ignore")
    if args.low_quality != "keep" and not args.min_quality:
        parser.error(f"--low-quality {args.low_quality} needs --min-quality, the limit")
    if not 0 <= args.min_quality <= 1:
        parser.error(f"--min-quality is from 0 to 1, got {args.min_quality}")
    if args.thresholds and len(args.thresholds) not in (1, 3):
        parser.error(f"--thresholds takes one or three numbers, got {len(args.thresholds)}")
    return args


def main() -> int:
    args = parse_args()
    with trusting_checkpoints(args.trust_checkpoint), stop_signals.handled():
        failed = generate_labels(
            load_config(args, RANK_TIMEOUT),
            args.checkpoint,
            args.ann_file,
            args.img_dir,
            args.out,
            label_source=args.source,
            flip_test=args.flip,
            refine_test=args.refine,
            thresholds=args.thresholds,
            margins=args.margins,
            predict_dtype=args.dtype,
            detections=args.boxes,
            only_missing=args.only_missing,
            allow_outside=args.allow_outside,
            date=args.date,
            resume=args.resume,
            mask_format=args.mask_format,
            min_quality=args.min_quality,
            low_quality=args.low_quality,
        )
    if not is_main_process():
        return 0
    print(f"labels: {args.out}")
    if failed:
        print(f"{failed} annotations could not be labeled, see {report_path(args.out)}")
        return SOME_FAILED
    return 0


if __name__ == "__main__":
    with readable_errors():
        sys.exit(main())
