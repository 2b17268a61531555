# SPDX-License-Identifier: Apache-2.0
"""Runs configs that differ in one thing each, and puts what came out into one table."""

from __future__ import annotations

import csv
import json
import os.path as osp
import re
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mmdet.registry import RUNNERS
from mmengine.config import Config
from mmengine.dist import is_main_process
from mmengine.fileio import exists

from mal_mmdet.engine import ProgressHook
from mal_mmdet.labeling import without_nan, write_json, write_text
from mal_mmdet.progress import track

from .launch import full_precision_without_gpu, resume_latest, set_launcher, use_safe_checkpoints

COLUMNS = ("miou", "miou_category", "miou_small", "miou_medium", "miou_large")


def rebase(config: str | Path, base: str | Path) -> str:
    """The text of a config that inherits from one other, made to inherit from ``base``.

    Raises:
        ValueError: The config does not have exactly one line ``_base_ = '…'``.
    """
    text, number = re.subn(
        r"^_base_ = ['\"].*['\"]$",
        f"_base_ = {str(Path(base).resolve())!r}",
        Path(config).read_text(encoding="utf-8"),
        flags=re.MULTILINE,
    )
    if number != 1:
        raise ValueError(
            f"{config} has {number} lines such as `_base_ = './other.py'`, expected one: only a "
            "config that inherits from one other can be given another base"
        )
    return text


def run_ablation(
    configs: Sequence[str | Path],
    work_dir: str | Path,
    base: str | Path | None = None,
    options: Mapping[str, Any] | None = None,
    launcher: str = "none",
) -> list[dict[str, Any]]:
    """Trains and tests every config and writes ``table.csv`` and ``table.md``.

    What is done is not done again, an interrupted training goes on.

    Args:
        configs: Configs of phase 1 whose ``test_evaluator`` is a :class:`MaskIoUMetric`.
        work_dir: Gets a folder for each config, with the config that ran, and the tables.
        base: A config that all others inherit from in place of their own base, and the first
            row of the table; so that a list of changes runs at another scale, on other data.
        options: Settings that override those of all configs.
        launcher: See :func:`set_launcher`.

    Returns:
        The rows of the table: ``name``, ``description``, ``COLUMNS`` and ``minutes``.

    Raises:
        ValueError: Two configs have the same name, one cannot be rebased, or the folder holds
            results of another config.
    """
    work_dir = Path(work_dir)
    paths = [Path(config) for config in ([base] if base else []) + list(configs)]
    names = [path.stem for path in paths]
    if len(set(names)) < len(names):
        raise ValueError(f"configs must have different names, got {', '.join(names)}")
    # All are read before the first one runs for hours.
    texts = [rebase(path, base) if base and path != paths[0] else None for path in paths]
    rows = []
    alone = launcher == "none"  # before the first training no rank knows its number
    for path, text in track([*zip(paths, texts)], "ablation", "configs", disable=not alone):
        folder = work_dir / path.stem
        if text is not None:
            write_text(folder / path.name, text)  # every rank writes the same
        cfg = Config.fromfile(path if text is None else folder / path.name)
        cfg.merge_from_dict(dict(options or {}))
        cfg.work_dir = str(folder)
        set_launcher(cfg, launcher)
        rows.append(dict(name=path.stem, description=description(path), **run_once(cfg)))
        if is_main_process():
            write_tables(work_dir, rows)
    return rows


def run_once(cfg: Config) -> dict[str, float]:
    """Trains and tests one config, unless its ``result.json`` is there.

    Returns:
        The metrics without their prefix, and ``minutes``, those of an earlier, interrupted part
        of the training not counted.

    Raises:
        FileNotFoundError: What it tests on is not there.
        ValueError: See :func:`check_work_dir`.
    """
    settings, work_dir = check_work_dir(cfg), Path(cfg.work_dir)
    if is_main_process():
        write_json(work_dir / "config.json", settings, indent=1)
    result_file = work_dir / "result.json"
    if result_file.exists():
        return json.loads(result_file.read_text())
    _check_test_files(cfg)
    use_safe_checkpoints(cfg)
    resume_latest(cfg)
    # MMEngine keeps visualizers by their names, and with them the folder of the run before.
    if cfg.get("visualizer"):
        cfg.visualizer.pop("name", None)
    start = time.monotonic()
    runner = RUNNERS.build(cfg)
    runner.register_hook(ProgressHook())
    runner.train()
    metrics = runner.test()
    result = {key.rpartition("/")[2]: value for key, value in metrics.items()}
    result["minutes"] = round((time.monotonic() - start) / 60, 1)
    result = without_nan(result)
    if is_main_process():
        write_json(result_file, result, indent=1)
    return result


def _check_test_files(cfg: Config) -> None:
    """Known before hours of training that nothing could measure."""
    dataset, evaluators = cfg.test_dataloader.dataset.get("dataset", {}), cfg.test_evaluator
    evaluators = evaluators if isinstance(evaluators, list) else [evaluators]
    paths = [evaluator.get("ann_file") for evaluator in evaluators]
    if "ann_file" in dataset:
        paths.append(osp.join(dataset.get("data_root") or "", dataset.ann_file))
    for path in paths:
        if path and not exists(path):
            raise FileNotFoundError(
                f"the config tests on {path}, which does not exist: set "
                "test_dataloader.dataset.dataset and test_evaluator.ann_file"
            )


def check_work_dir(cfg: Config) -> dict[str, Any]:
    """The settings of a run, after a look whether its ``work_dir`` belongs to the same ones.

    Raises:
        ValueError: It holds a run of another config.
    """
    full_precision_without_gpu(cfg)
    settings, file = without_nan(cfg.to_dict()), Path(cfg.work_dir) / "config.json"
    for key in ("launcher", "work_dir"):
        settings.pop(key, None)
    settings = json.loads(json.dumps(settings, default=str))
    if file.exists():
        before = json.loads(file.read_text())
        if before != settings:
            keys = [k for k in {**before, **settings} if before.get(k) != settings.get(k)]
            raise ValueError(
                f"{cfg.work_dir} holds a run of another config ({', '.join(keys)} differ from its "
                f"{file.name}): give another --work-dir, or delete the folder to run anew"
            )
    return settings


def description(config: Path) -> str:
    """The comment that a config opens with, as one line."""
    lines = []
    for line in config.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        lines.append(line.lstrip("# "))
    return " ".join(lines)


def write_tables(work_dir: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Writes the rows so far as ``table.csv`` and ``table.md``."""
    fields = ("name", "description", *COLUMNS, "minutes")
    with open(work_dir / "table.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fields, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)
    lines = ["| config | what it changes | mIoU | by category | small | medium | large |"]
    lines.append("| --- " * 7 + "|")
    for row in rows:
        values = [row.get(column) for column in COLUMNS]
        figures = ["" if value is None else f"{value:.3f}" for value in values]
        lines.append(f"| {' | '.join([row['name'], row['description'], *figures])} |")
    write_text(work_dir / "table.md", "\n".join(lines) + "\n")
