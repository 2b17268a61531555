# SPDX-License-Identifier: Apache-2.0
"""Named groups of categories that have a figure of their own, such as COCO's semi-stuff."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from mmdet.datasets import CocoDataset

COCO_SEMI_STUFF = (
    "bus",
    "train",
    "truck",
    "bench",
    "couch",
    "bed",
    "dining table",
    "toilet",
    "oven",
    "sink",
    "refrigerator",
)
"""Between things and stuff: large, and often cut or covered (paper, Sec. 4)."""

COCO_THINGS = tuple(c for c in CocoDataset.METAINFO["classes"] if c not in COCO_SEMI_STUFF)
"""The other categories of COCO."""

PRESETS = dict(coco={"things": COCO_THINGS, "semi-stuff": COCO_SEMI_STUFF})


def resolve_groups(
    groups: str | Mapping[str, Sequence[str]], categories: Sequence[str]
) -> dict[str, tuple[str, ...]]:
    """The groups that an option ``groups`` means, checked against a data set's categories.

    Args:
        groups: Name of a preset (``'coco'``: things and semi-stuff), or a group's name → the
            names of its categories. Groups may overlap and need not hold every category.
        categories: Names of the data set's categories.

    Returns:
        A group's name → the names of its categories.

    Raises:
        ValueError: No such preset, not lists of names, or unknown categories, which are named
            with their group.
    """
    if isinstance(groups, str) and groups in PRESETS:
        groups = PRESETS[groups]
    if not isinstance(groups, Mapping):
        raise ValueError(
            f"groups is {groups!r:.80}, but must be one of {list(PRESETS)} or map a group's name "
            "to a list of categories"
        )
    for name, members in groups.items():
        if isinstance(members, str) or not isinstance(members, Sequence) or not members:
            raise ValueError(
                f"groups.{name} is {members!r:.80}, but must be a list of at least one category"
            )
        unknown = [member for member in members if member not in categories]
        if unknown:
            raise ValueError(
                f"groups.{name} has the unknown categories {_first(unknown)}; the data set has "
                f"{_first(sorted(categories))}"
            )
    return {name: tuple(members) for name, members in groups.items()}


def _first(names: list[str]) -> str:
    return f"{names[:5]}" + (f" and {len(names) - 5} more" if len(names) > 5 else "")
