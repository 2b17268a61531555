# SPDX-License-Identifier: Apache-2.0
import json
import os

import pytest

from mal_mmdet.labeling import (
    find_problems,
    image_file,
    image_problem,
    open_coco,
    read_coco,
    strip_masks,
    without_nan,
    write_json,
)


def coco(**changes):
    ann = dict(id=7, image_id=1, category_id=1, bbox=[10, 10, 20, 20], area=400)
    ann.update(changes)
    ann = {k: v for k, v in ann.items() if v != "missing"}
    return dict(
        images=[dict(id=1, file_name="a.jpg", width=100, height=80)],
        annotations=[ann],
        categories=[dict(id=1, name="thing")],
    )


def test_ids_and_sizes_that_are_no_whole_numbers(tmp_path):
    content = coco()
    content["images"][0]["id"] = 1.0
    write_json(tmp_path / "floats.json", content)
    words = r"images\[0\] of .*'id': 1.0, .* has no 'id' that is a whole number"
    with pytest.raises(ValueError, match=words):
        read_coco(tmp_path / "floats.json")
    problem = image_problem(dict(id=1, file_name="a.jpg", width=100.0, height=80))
    assert problem == "'width' of its image 1 is 100.0, expected a whole number of pixels"


@pytest.mark.parametrize(
    "changes, words",
    [
        (dict(bbox="missing"), "has no 'bbox'"),
        (dict(image_id="missing"), "has no 'image_id'"),
        (dict(id="missing"), "has no 'id'"),
        (dict(category_id="missing"), "has no 'category_id'"),
        (dict(id=[7]), "'id' is [7]"),
        (dict(image_id=5), "image 5 is not in 'images'"),
        (dict(category_id=9), "category 9 is not in 'categories'"),
        (dict(bbox=[1, 2, 3]), "expected four numbers"),
        (dict(bbox=None), "expected four numbers"),
        (dict(bbox=["1", 2, 3, 4]), "expected four numbers"),
        (dict(bbox=[True, 2, 3, 4]), "expected four numbers"),
        (dict(bbox=[10, 10, 0, 5]), "is empty"),
        (dict(bbox=[10, 10, 5, -5]), "is empty"),
        (dict(bbox=[10, float("nan"), 5, 5]), "NaN or infinity"),
        (dict(bbox=[10, 10, float("inf"), 5]), "NaN or infinity"),
        (dict(bbox=[10, 10, 1e-16, 5]), "its width or height is lost beside x or y"),
        (dict(bbox=[100, 10, 5, 5]), "outside its image of 100×80"),
        (dict(bbox=[10, -5, 5, 5]), "outside its image"),
        (dict(bbox=[0, 0, 1e9, 10]), "three times as large as its image"),
    ],
)
def test_every_problem_is_named(changes, words):
    problems = find_problems(coco(**changes))
    assert list(problems) == [0] and words in problems[0]


@pytest.mark.parametrize("bbox", [[10, 10, 20, 20], [-5, -5, 6, 6], [99.5, 79.5, 50, 50]])
def test_boxes_that_meet_the_image_are_fine(bbox):
    assert find_problems(coco(bbox=bbox)) == {}


def test_repeated_ids_and_wrong_types():
    data = coco()
    data["annotations"] += [dict(data["annotations"][0]), "text", None]
    problems = find_problems(data)
    assert list(problems) == [1, 2, 3]
    assert "7 occurs more than once" in problems[1] and "'text'" in problems[2]


@pytest.mark.parametrize(
    "content, words",
    [
        ("{", "is not valid JSON"),
        ("[]", "no list 'images'"),
        ('{"images": [], "annotations": {}}', "no list 'annotations'"),
        ('{"images": [], "annotations": []}', "no list 'categories'"),
        ('{"images": [3], "annotations": [], "categories": []}', r"images\[0\].* no 'id'"),
        (json.dumps({**coco(), "categories": [dict(id=1)]}), r"categories\[0\].* no 'name'"),
        (json.dumps({**coco(), "images": coco()["images"] * 2}), "ids of images .* not unique"),
    ],
)
def test_files_that_are_no_coco_files(tmp_path, content, words):
    path = tmp_path / "file.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=words):
        read_coco(path)


@pytest.mark.parametrize(
    "change, words",
    [
        (dict(width=None), "'width' of its image 1 is None"),
        (dict(height="80"), "'height' of its image 1 is '80'"),
        (dict(height=-80), "'height' of its image 1 is -80"),
        (dict(file_name=3), "'file_name' of its image 1 is 3"),
        (dict(file_name=None, coco_url="http://a/b/c.jpg"), "'file_name' of its image 1 is None"),
    ],
)
def test_an_image_entry_that_cannot_be_used(change, words):
    data = coco()
    data["images"][0].update(change)
    assert words in find_problems(data)[0]


@pytest.mark.parametrize("url, sound", [("http://a.org/val2017/1.jpg", True), ("", False)])
def test_an_image_with_a_url_instead_of_a_name(url, sound):
    data = coco()
    del data["images"][0]["file_name"]
    data["images"][0]["coco_url"] = url
    problems = find_problems(data)
    assert problems == {} if sound else "'coco_url' of its image 1 is ''" in problems[0]


@pytest.mark.parametrize(
    "image, parts, expected",
    [
        (dict(file_name="images/v1/patch8/x.jpg"), None, "images/v1/patch8/x.jpg"),
        (dict(file_name="images/v1/patch8/x.jpg"), 2, "patch8/x.jpg"),
        (dict(file_name="x.jpg"), 2, "x.jpg"),
        (dict(coco_url="http://images.cocodataset.org/val2017/7.jpg"), None, "val2017/7.jpg"),
        (dict(coco_url="http://a.org/val2017/7.jpg", file_name="b/8.jpg"), None, "b/8.jpg"),
    ],
)
def test_image_file(image, parts, expected):
    assert image_file(image, parts) == expected


def test_without_nan():
    content = dict(a=[1.5, float("nan")], b=dict(c=float("-inf"), d="x"))
    assert without_nan(content) == dict(a=[1.5, None], b=dict(c=None, d="x"))


@pytest.mark.parametrize(
    "bbox", [[0, 0, "3", 2], [0, 0, [1], 2], [0, 0, 10**400, 0.5], [1, 2], None]
)
def test_strip_masks_leaves_unusable_boxes_for_others_to_report(bbox):
    stripped = strip_masks(coco(segmentation=[[1, 2, 3, 4, 5, 6]], bbox=bbox))
    assert stripped == coco(bbox=bbox)
    assert strip_masks(dict(annotations=[5, None])) == dict(annotations=[None, None])


def test_strip_masks_takes_the_mask_and_its_area_and_nothing_else():
    data = coco(segmentation=[[1, 2, 3, 4, 5, 6]], area=123.4, score=0.5, iscrowd=0)
    data["info"] = dict(year=2017)
    stripped = strip_masks(data)
    expected = coco(area=400, score=0.5, iscrowd=0)
    assert stripped == {**expected, "info": dict(year=2017)}
    assert "segmentation" in data["annotations"][0]  # the input is left alone


def test_write_json_leaves_the_old_file_when_it_fails(tmp_path):
    path = tmp_path / "new" / "out.json"
    write_json(path, [1])
    with pytest.raises(TypeError):
        write_json(path, [2, object()])
    assert json.loads(path.read_text()) == [1]
    assert os.listdir(path.parent) == ["out.json"]


def test_detections_take_the_place_of_the_annotations(tmp_path):
    image = dict(id=7, file_name="a.jpg", width=50, height=40)
    coco = dict(images=[image], categories=[dict(id=3, name="cat")], annotations=[dict(id=1)])
    write_json(tmp_path / "boxes.json", coco)
    good = dict(image_id=7, category_id=3, bbox=[1, 2, 3, 4], score=0.5)
    without_score = {k: v for k, v in good.items() if k != "score"}
    write_json(tmp_path / "results.json", [good, without_score, good | dict(score="high")])
    found = open_coco(tmp_path / "boxes.json", tmp_path / "results.json")
    assert found["images"] == [image]
    assert list(found["annotations"]) == [good, without_score, good | dict(score="high")]
    assert find_problems(found, scored=True) == {
        1: "its 'score' is None, expected a number",
        2: "its 'score' is 'high', expected a number",
    }
    boxes = open_coco(tmp_path / "boxes.json")
    assert {**boxes, "annotations": list(boxes["annotations"])} == coco
    with pytest.raises(FileNotFoundError, match=r"nothing.json does not exist"):
        open_coco(tmp_path / "boxes.json", tmp_path / "nothing.json")
