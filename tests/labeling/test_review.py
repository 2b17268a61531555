# SPDX-License-Identifier: Apache-2.0
import hashlib
import json

import pytest

from mal_mmdet.labeling import apply_review, read_coco, read_decisions, write_json

IDS = [7, "7", 1, 30, 2]


@pytest.fixture
def labels(tmp_path):
    template = dict(image_id=1, category_id=1, bbox=[1, 2, 3, 4], iscrowd=0, note="é")
    write_json(
        tmp_path / "labels.json",
        dict(
            info=dict(year=2026),
            annotations=[dict(template, id=i, mask_quality=0.5) for i in IDS],
            images=[dict(id=1, file_name="a.png", width=9, height=9)],
            categories=[dict(id=1, name="a")],
        ),
    )
    return tmp_path / "labels.json"


@pytest.fixture
def decide(labels, tmp_path):
    """Writes decisions about the label file; what is given replaces what they hold."""

    def write(**changes):
        digest = hashlib.sha256(labels.read_bytes()).hexdigest()
        content = dict(
            format="mal_mmdet review",
            version=1,
            labels=dict(name="labels.json", sha256=digest),
            accepted=[],
            rejected=[],
            flagged=[],
        )
        path = tmp_path / "decisions.json"
        path.write_text(json.dumps(content | changes))
        return path

    return write


@pytest.mark.parametrize("rejected", ["drop", "ignore"])
def test_decisions_are_applied(labels, decide, tmp_path, rejected):
    decisions = decide(accepted=[30, 7], rejected=["7"], flagged=[2])
    counts = apply_review(labels, decisions, tmp_path / "out.json", rejected)
    assert counts == dict(accepted=2, rejected=1, flagged=1)
    before, after = read_coco(labels), read_coco(tmp_path / "out.json")
    assert list(before) == list(after)
    by_id = {ann["id"]: ann for ann in before["annotations"]}
    for ann_id in (7, 30):
        by_id[ann_id]["review"] = "accepted"
    by_id[2]["review"] = "flagged"
    by_id["7"] |= dict(review="rejected", iscrowd=1)
    expected = [by_id[i] for i in IDS if rejected == "ignore" or i != "7"]
    assert after == before | dict(annotations=expected)


def test_no_decisions_change_nothing(labels, decide, tmp_path):
    counts = apply_review(labels, decide(), tmp_path / "out.json")
    assert counts == dict(accepted=0, rejected=0, flagged=0)
    assert read_coco(tmp_path / "out.json") == read_coco(labels)


def test_a_review_does_not_replace_its_label_file(labels, decide):
    """Nobody could go back on a decision."""
    before = labels.read_bytes()
    with pytest.raises(ValueError, match="is also read, and what it holds would be lost"):
        apply_review(labels, decide(rejected=[1]), labels)
    assert labels.read_bytes() == before


@pytest.mark.parametrize(
    "changes, message",
    [
        (dict(format="other"), "does not hold decisions"),
        (dict(version=2), "has version 2 of decisions, expected 1"),
        (dict(accepted=None), "has no list 'accepted', but None"),
        (dict(flagged=[[1]]), r"'flagged' lists \[1\], expected ids"),
        (dict(flagged=[True]), "'flagged' lists True, expected ids"),
        (dict(flagged=[1.0]), r"'flagged' lists 1\.0, expected ids"),
        (dict(accepted=[1], flagged=[1]), "decides about annotation 1 twice"),
        (dict(labels=dict(name="b.json", sha256="0")), r"another file: 'b\.json'"),
        (dict(labels=None), "about another file: None"),
        (dict(rejected=[1, 5, "x"]), "about 2 annotations that are not in .*: 5, 'x'"),
    ],
)
def test_decisions_that_do_not_fit(labels, decide, tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        apply_review(labels, decide(**changes), tmp_path / "out.json")
    assert {p.name for p in tmp_path.iterdir()} == {"labels.json", "decisions.json"}


def test_a_changed_label_file_is_another_file(labels, decide):
    decisions = decide(accepted=[1])
    assert read_decisions(decisions, labels) == {1: "accepted"}
    labels.write_text(labels.read_text() + "\n")
    with pytest.raises(ValueError, match="about another file"):
        read_decisions(decisions, labels)


def test_other_bad_input(labels, decide, tmp_path):
    with pytest.raises(ValueError, match="rejected is 'keep', expected one of"):
        apply_review(labels, decide(), tmp_path / "out.json", "keep")
    with pytest.raises(FileNotFoundError, match=r"none\.json does not exist"):
        apply_review(labels, tmp_path / "none.json", tmp_path / "out.json")
    (tmp_path / "decisions.json").write_text("[]")
    with pytest.raises(ValueError, match="does not hold decisions"):
        apply_review(labels, tmp_path / "decisions.json", tmp_path / "out.json")
