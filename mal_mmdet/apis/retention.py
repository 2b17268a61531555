# SPDX-License-Identifier: Apache-2.0
"""What a detector keeps of its AP when it learns from MAL's masks instead of human ones."""

from __future__ import annotations

import copy
import json
import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from mmdet.evaluation import CocoMetric
from mmdet.registry import METRICS
from mmengine.config import Config
from mmengine.dist import is_main_process
from mmengine.logging import print_log

from mal_mmdet.evaluation import coco_ap
from mal_mmdet.labeling import (
    file_sha256,
    has_mask,
    read_coco,
    refuse_input,
    refuse_problems,
    without_nan,
    write_json,
    write_text,
)
from mal_mmdet.labeling.coco_file import replacing
from mal_mmdet.progress import track

from .ablation import check_work_dir, run_once
from .label_swap import innermost_dataset, use_labels
from .launch import read_config, set_launcher

# Prefix of the figures → how pairs are compared, and whose results CocoMetric writes them to.
MEASURES = dict(mask=("segm", "segm"), boundary=("boundary", "segm"), box=("bbox", "bbox"))
MEASURING = 24 * 3600  # seconds that the other ranks wait while one measures
COLUMNS = {
    "mask_ap": "mask AP",
    "mask_ap50": "AP50",
    "mask_ap75": "AP75",
    "mask_ap_small": "S",
    "mask_ap_medium": "M",
    "mask_ap_large": "L",
    "boundary_ap": "boundary AP",
    "box_ap": "box AP",
}


@dataclass(frozen=True)
class Row:
    """One line of the comparison.

    Attributes:
        name: What the table calls it.
        config: Config file of a detector, or ``package::path``.
        labels: COCO file that it is trained on.
    """

    name: str
    config: str
    labels: str | Path

    @property
    def folder(self) -> str:
        return re.sub(r"\W+", "-", self.name).strip("-").lower()


def measure_retention(
    rows: Sequence[Row],
    val_labels: str | Path,
    work_dir: str | Path,
    seeds: int = 3,
    data_root: str | Path | None = None,
    img_dir: str | Path | None = None,
    val_img_dir: str | Path | None = None,
    options: Mapping[str, Any] | None = None,
    launcher: str = "none",
) -> list[dict[str, Any]]:
    """Trains every row with every seed and compares them with the first.

    Writes ``retention.json``, ``retention.md`` and ``retention.png``, after each training anew, and
    ``val.json``, the human masks with ids that COCO's evaluators take.
    What is done is not done again, an interrupted training goes on. The last checkpoint counts:
    nothing is chosen with the validation masks, which are not looked at before the end.

    Args:
        rows: The first one's labels are the human ones.
        val_labels: COCO file with human masks to measure AP with.
        work_dir: Gets a folder for each row and seed, and the tables.
        seeds: How many; row for row they are 0, 1, ...
        data_root: See :func:`use_labels`.
        img_dir: Likewise.
        val_img_dir: Likewise.
        options: Settings that override those of all configs.
        launcher: See :func:`set_launcher`.

    Returns:
        For each row, see :func:`summarize`.

    Raises:
        ValueError: Rows have the same name, or other images or boxes than the first, a config
            and its labels do not go together, or the folder holds results of other ones. Nothing
            has been trained then.
    """
    names = [row.folder for row in rows]
    if len(set(names)) < len(names) or "" in names:
        raise ValueError(f"rows must have different names, got {[row.name for row in rows]}")
    _check_images(rows)
    work_dir = Path(work_dir).resolve()
    truth, humans = work_dir / "val.json", _numbered_truth(val_labels)
    refuse_input(truth, val_labels, *(row.labels for row in rows))
    paths = dict(data_root=data_root, img_dir=img_dir, val_img_dir=val_img_dir)
    cfgs = []
    for row in rows:
        cfg = read_config(row.config)
        cfg.merge_from_dict(dict(options or {}))
        use_labels(cfg, row.labels, val_labels=val_labels, **paths)
        _test_at_the_end(cfg, row, val_labels)
        innermost_dataset(cfg.test_dataloader.dataset).ann_file = str(truth)
        cfg.test_evaluator.ann_file = str(truth)
        cfgs.append(cfg)
    runs = {
        (seed, row): _run(cfg, work_dir / row.folder / f"seed{seed}", seed, launcher)
        for seed in range(seeds)
        for row, cfg in zip(rows, cfgs)
    }
    for run in runs.values():
        check_work_dir(run)
    work_dir.mkdir(parents=True, exist_ok=True)
    write_json(truth, humans)
    measured: dict[Row, list[dict]] = {row: [] for row in rows}
    table: list[dict] = []
    alone = launcher == "none"  # before the first training no rank knows its number
    for (_, row), run in track(runs.items(), "retention", "trainings", disable=not alone):
        minutes = run_once(run)["minutes"]
        if is_main_process():
            measured[row].append(dict(**measure(truth, run.work_dir), minutes=minutes))
            table = [summarize(row, measured[row], measured[rows[0]]) for row in rows]
            _write(work_dir, table)
    return table


def _run(cfg: Config, work_dir: Path, seed: int, launcher: str) -> Config:
    run = copy.deepcopy(cfg)
    run.work_dir = str(work_dir)
    run.test_evaluator.outfile_prefix = f"{work_dir}/predictions"
    run.randomness = dict(run.get("randomness") or {}, seed=seed)
    set_launcher(run, launcher, timeout=MEASURING)
    return run


def measure(val_labels: str | Path, folder: str | Path) -> dict[str, float]:
    """AP of the predictions in a folder, by :func:`coco_ap`: of masks, boundaries and boxes.

    What was measured once is read from the folder's ``figures.json``.

    Returns:
        ``mask_ap``, ``mask_ap50``, ..., ``boundary_ap``, ..., ``box_ap``, ...; those that the
        detector does not predict are not there.
    """
    file = Path(folder) / "figures.json"
    if file.exists():
        found = json.loads(file.read_text())
        return {key: np.nan if value is None else value for key, value in found.items()}
    figures = {}
    for measure, (iou_type, kind) in track(MEASURES.items(), "measuring AP", "kinds"):
        results = Path(folder) / f"predictions.{kind}.json"
        if results.exists():
            found = coco_ap(val_labels, results, iou_type)
            figures |= {f"{measure}_{key}": value for key, value in found.items()}
    write_json(file, without_nan(figures), indent=1)
    return figures


def summarize(
    row: Row, runs: Sequence[Mapping[str, float]], reference: Sequence[Mapping[str, float]]
) -> dict[str, Any]:
    """A row's figures over its seeds.

    Args:
        row: What was trained.
        runs: Figures of each seed, see :func:`measure`; possibly fewer than ``reference``.
        reference: Those of the row with human labels, in the same order of seeds.

    Returns:
        ``name``, ``config``, ``labels``, ``runs``; ``mean`` and ``std`` (of the sample; empty
        after one seed) of every figure that is no NaN; and the mean and std of ``retention``,
        mask AP as a share of the reference's with the same seed.
    """
    values = {key: np.array([run[key] for run in runs]) for key in (runs[0] if runs else {})}
    values = {key: value for key, value in values.items() if not np.isnan(value).any()}
    if "mask_ap" in values and all(run.get("mask_ap") for run in reference):
        human = np.array([run["mask_ap"] for run in reference[: len(runs)]])
        values["retention"] = values["mask_ap"] / human
    return dict(
        name=row.name,
        config=str(row.config),
        labels=str(row.labels),
        runs=list(runs),
        mean={key: float(v.mean()) for key, v in values.items()},
        std={key: float(v.std(ddof=1)) for key, v in values.items() if len(v) > 1},
    )


def retention_table(table: Sequence[Mapping[str, Any]]) -> str:
    """The rows as Markdown: AP in percent, mean ± standard deviation over the seeds."""
    header = ["", *COLUMNS.values(), "retention"]
    lines = [f"| {' | '.join(header)} |", "| --- " * len(header) + "|"]
    for row in table:
        cells = [_cell(row, key, 100, 1) for key in COLUMNS] + [_cell(row, "retention", 1, 3)]
        lines.append(f"| {' | '.join([row['name'].replace('|', '/'), *cells])} |")
    return "\n".join(lines) + "\n"


def draw_retention(table: Sequence[Mapping[str, Any]], path: str | Path) -> None:
    """Draws mask, boundary and box AP of the rows as bars, with the spread over the seeds."""
    figure = Figure(figsize=(3.5 + 1.2 * len(table), 4.2), layout="constrained")
    axes = figure.add_subplot()
    places = np.arange(len(table))
    for i, key in enumerate(("mask_ap", "boundary_ap", "box_ap")):
        heights = [100 * row["mean"].get(key, np.nan) for row in table]
        errors = [100 * row["std"].get(key, 0) for row in table]
        axes.bar(places + 0.27 * (i - 1), heights, 0.25, yerr=errors, capsize=2, label=COLUMNS[key])
    names = [row["name"].replace(" ", "\n") for row in table]
    shares = [row["mean"].get("retention") for row in table]
    names = [n if s is None else f"{n}\n({s:.1%})" for n, s in zip(names, shares)]
    axes.set_xticks(places, names)
    axes.set_xlim(-0.6, len(table) - 0.4)  # rows that are not trained yet have no bars
    axes.set_ylabel("AP (%)")
    axes.set_title("AP of detectors, and the share of mask AP that each label file retains")
    figure.legend(loc="outside right upper")
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=100)


def _cell(row: Mapping[str, Any], key: str, factor: float, digits: int) -> str:
    mean, std = row["mean"].get(key), row["std"].get(key)
    if mean is None:
        return ""
    cell = f"{factor * mean:.{digits}f}"
    return cell if std is None else f"{cell} ± {factor * std:.{digits}f}"


def _write(work_dir: Path, table: list[dict]) -> None:
    write_json(work_dir / "retention.json", without_nan(table), indent=1)
    write_text(work_dir / "retention.md", retention_table(table))
    draw_retention(table, work_dir / "retention.png")


def _check_images(rows: Sequence[Row]) -> None:
    """A row with other images or boxes would be compared by its data, not by its masks."""
    expected = boxes = None
    for row in rows:
        coco = read_coco(row.labels)
        refuse_problems(coco, row.labels, allow_outside=True, boxes=False)
        found = {a["id"]: (a["image_id"], a["category_id"], a["bbox"]) for a in coco["annotations"]}
        boxes = found if boxes is None else boxes
        common = found.keys() & boxes.keys()
        other = next((i for i in common if found[i] != boxes[i]), None)
        if other is not None or not common:
            raise ValueError(
                f"{row.labels} has other boxes than {rows[0].labels}, {other!r} for one: rows can "
                "be compared only if they are labels of the same annotations"
            )
        if len(common) < max(len(found), len(boxes)):
            print_log(
                f"{row.labels} has {len(found)} boxes and {rows[0].labels} has {len(boxes)}: what "
                "a detector keeps is then a matter of boxes too",
                logger="current",
                level=logging.WARNING,
            )
        used = {ann["image_id"] for ann in coco["annotations"]}
        # Their order decides, with the seed, when each is seen.
        images = [(i["id"], i.get("file_name"), i["id"] in used) for i in coco["images"]]
        expected = images if expected is None else expected
        if images != expected:
            raise ValueError(
                f"{row.labels} has other images than {rows[0].labels}, or in another order, or "
                f"annotations in other ones ({sum(used for *_, used in images)} of {len(images)} "
                f"with annotations, expected {sum(used for *_, used in expected)} of "
                f"{len(expected)}): rows can be compared only if they see the same images. Of "
                "reviewed labels, those of tools/apply_review.py --rejected ignore do"
            )


def _numbered_truth(val_labels: str | Path) -> dict[str, Any]:
    """Human masks with what COCO's evaluators need of every annotation, drawn by people.

    They take the id 0 for no annotation, and no texts: all is numbered from 1.
    """
    coco = read_coco(val_labels)
    refuse_problems(coco, val_labels, allow_outside=True, boxes=False)
    numbers = {
        key: {entry["id"]: i for i, entry in enumerate(coco[key], start=1)}
        for key in ("images", "categories")
    }
    for i, ann in enumerate(coco["annotations"], start=1):
        missing = [key for key in ("area", "iscrowd") if ann.get(key) is None]
        missing += [] if has_mask(ann) else ["segmentation"]
        if missing:
            raise ValueError(
                f"annotation {ann['id']} of {val_labels} has no {missing[0]!r}, which COCO's AP "
                "needs; expected a COCO file in which people have drawn every mask"
            )
        if ann.get("source") == "mal":
            raise ValueError(
                f"annotation {ann['id']} of {val_labels} is a mask of MAL's (source is 'mal'), and "
                "would agree with MAL's mistakes; expected a COCO file in which people have drawn "
                "every mask"
            )
        ann["id"] = i
        ann["image_id"] = numbers["images"][ann["image_id"]]
        ann["category_id"] = numbers["categories"][ann["category_id"]]
    for key in numbers:
        for entry in coco[key]:
            entry["id"] = numbers[key][entry["id"]]
    return coco


def _test_at_the_end(cfg: Config, row: Row, val_labels: str | Path) -> None:
    if cfg.get("test_dataloader") is None or cfg.get("test_cfg") is None:
        raise ValueError(f"{row.config} has no test_dataloader or no test_cfg: nothing to measure")
    metric = cfg.test_evaluator.type
    if (METRICS.get(metric) if isinstance(metric, str) else metric) is not CocoMetric:
        raise ValueError(
            f"{row.config} is tested by {metric}, whose AP is not COCO's: take a config with "
            "CocoMetric, or compare with tools/train.py and tools/test.py"
        )
    for key in ("val_dataloader", "val_evaluator", "val_cfg"):
        cfg[key] = None
    # Part of the settings that a finished run is recognised by: files change under their names.
    cfg.label_files = {}
    for role, path in dict(train=row.labels, val=val_labels).items():
        cfg.label_files[role] = file_sha256(path)
