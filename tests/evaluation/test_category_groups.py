# SPDX-License-Identifier: Apache-2.0
import pytest
from mmdet.datasets import CocoDataset

from mal_mmdet.evaluation import COCO_SEMI_STUFF, COCO_THINGS, resolve_groups

CLASSES = CocoDataset.METAINFO["classes"]


def test_cocos_groups_part_its_categories():
    assert len(COCO_THINGS) == 69 and len(COCO_SEMI_STUFF) == 11
    assert {*COCO_THINGS, *COCO_SEMI_STUFF} == {*CLASSES}
    assert resolve_groups("coco", CLASSES) == {
        "things": COCO_THINGS,
        "semi-stuff": COCO_SEMI_STUFF,
    }


def test_groups_may_overlap():
    groups = dict(a=["cat", "dog"], b=("dog",))
    assert resolve_groups(groups, ["cat", "dog", "bus"]) == dict(a=("cat", "dog"), b=("dog",))


@pytest.mark.parametrize(
    "groups, words",
    [
        ("lvis", r"groups is 'lvis', but must be one of \['coco'\]"),
        (["cat"], r"groups is \['cat'\]"),
        ({"semi-stuff": ["bus", "tram"]}, r"groups.semi-stuff .* \['tram'\]; .* \['bus', 'cat'\]"),
        ("coco", r"groups.things has the unknown categories \['person'"),
        (dict(a="cat"), r"groups.a is 'cat', but must be a list"),
        (dict(a=[]), r"groups.a is \[\]"),
    ],
)
def test_bad_groups(groups, words):
    with pytest.raises(ValueError, match=words):
        resolve_groups(groups, ["cat", "bus"])
