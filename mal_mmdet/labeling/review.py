# SPDX-License-Identifier: Apache-2.0
"""Decisions of the review page, and a label file that follows them."""

from __future__ import annotations

from pathlib import Path

from mal_mmdet.progress import track

from .coco_file import open_coco, read_json, refuse_input, replacing
from .json_stream import ListWriter, write_around
from .shards import file_sha256

FORMAT, VERSION = "mal_mmdet review", 1  # review.js writes them
DECISIONS = ("accepted", "rejected", "flagged")
REJECTED = ("drop", "ignore")
"""What may become of rejected annotations; ``ignore`` marks them as crowd."""


def read_decisions(path: str | Path, label_file: str | Path) -> dict[int | str, str]:
    """Reads decisions that the review page exported, and checks that they fit a label file.

    Args:
        path: JSON file.
        label_file: The file that the page was made of.

    Returns:
        Annotation id → one of ``DECISIONS``.

    Raises:
        FileNotFoundError: No such file.
        ValueError: No such decisions, or they are about another file.
    """
    content = read_json(path)
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise ValueError(f"{path} does not hold decisions as the review page exports them")
    if content.get("version") != VERSION:
        raise ValueError(
            f"{path} has version {content.get('version')!r} of decisions, expected {VERSION}"
        )
    decisions: dict[int | str, str] = {}
    for decision in DECISIONS:
        ids = content.get(decision)
        if not isinstance(ids, list):
            raise ValueError(f"{path} has no list {decision!r}, but {ids!r:.60}")
        for ann_id in ids:
            if isinstance(ann_id, bool) or not isinstance(ann_id, (int, str)):
                raise ValueError(
                    f"{path}: {decision!r} lists {ann_id!r:.60}, expected ids of annotations"
                )
            if ann_id in decisions:
                raise ValueError(f"{path} decides about annotation {ann_id!r} twice")
            decisions[ann_id] = decision
    labels = content.get("labels")
    labels = labels if isinstance(labels, dict) else {}
    found = file_sha256(label_file)
    if labels.get("sha256") != found:
        raise ValueError(
            f"the decisions in {path} are about another file: {labels.get('name')!r} with the "
            f"SHA-256 {labels.get('sha256')}; that of {label_file} is {found}"
        )
    return decisions


def apply_review(
    label_file: str | Path,
    decision_file: str | Path,
    out_file: str | Path,
    rejected: str = "drop",
) -> dict[str, int]:
    """Writes a copy of a label file that follows the decisions of a review.

    Decided annotations get ``review``: the decision. Everything else stays as it was.

    Args:
        label_file: COCO file.
        decision_file: What the review page of that file exported.
        out_file: COCO file to write.
        rejected: What becomes of rejected masks: ``drop`` leaves their annotations out,
            ``ignore`` marks them as crowd, as :class:`LabelWriter` does with low quality.

    Returns:
        How many annotations were decided about, by decision.

    Raises:
        FileNotFoundError: No such file.
        ValueError: Unknown treatment, see also :func:`read_decisions`; an id is not in the
            label file; or ``out_file`` is one of the others. Nothing is written then.
    """
    refuse_input(out_file, label_file, decision_file)
    if rejected not in REJECTED:
        raise ValueError(f"rejected is {rejected!r}, expected one of {REJECTED}")
    coco = open_coco(label_file)
    decisions = read_decisions(decision_file, label_file)

    def follow(out: ListWriter) -> None:
        for ann in track(coco["annotations"], "writing labels", "boxes"):
            ann_id = ann.get("id") if isinstance(ann, dict) else None
            decision = decisions.pop(ann_id, None) if isinstance(ann_id, (int, str)) else None
            if decision == "rejected" and rejected == "drop":
                continue
            if decision == "rejected":
                ann["iscrowd"] = 1
            if decision:
                ann["review"] = decision
            out.add(ann)

    counts = {decision: [*decisions.values()].count(decision) for decision in DECISIONS}
    with replacing(out_file) as temporary, open(temporary, "w", encoding="utf-8") as file:
        write_around(file, coco, "annotations", follow)
        if decisions:
            unknown = ", ".join(repr(ann_id) for ann_id in [*decisions][:5])
            raise ValueError(
                f"{decision_file} decides about {len(decisions)} annotations that are not in "
                f"{label_file}: {unknown}"
            )
    return counts
