# SPDX-License-Identifier: Apache-2.0
"""Label files in other formats, read back by parsers of their own."""

import json
from xml.etree import ElementTree

import numpy as np
import pytest
import yaml
from PIL import Image, ImageDraw

from mal_mmdet.labeling import encode_mask, export_labels, segmentation_to_mask
from tests.labeling.test_polygons import NESTED, RING, iou

WIDTH, HEIGHT = 90, 70
SCALE = 16  # of the canvas that a test draws polygons on


def place(shape, top, left, times=2):
    mask = np.zeros((HEIGHT, WIDTH), dtype=bool)
    shape = shape.repeat(times, 0).repeat(times, 1)
    mask[top : top + shape.shape[0], left : left + shape.shape[1]] = shape
    return mask


MASKS = [place(RING, 3, 5), place(NESTED, 10, 30), place(np.ones((1, 1), bool), 60, 80, 1)]
POLYGON = [[10.0, 10.0, 40.0, 10.0, 40.0, 30.0], [50.0, 40.0, 80.0, 40.0, 80.0, 60.0, 50.0, 60.0]]


def labels():
    images = [
        dict(id=7, file_name="a/one & two.jpg", width=WIDTH, height=HEIGHT),
        dict(id=9, file_name="ünï.png", width=WIDTH, height=HEIGHT),
        dict(id=4, file_name="empty.jpg", width=30, height=20),
    ]
    categories = [dict(id=18, name="dog: brown"), dict(id=3, name='"cat" <x>')]
    segmentations = [*map(encode_mask, MASKS), POLYGON]
    annotations = [
        dict(
            id=100 + i,
            image_id=image_id,
            category_id=category_id,
            bbox=[1.0, 1.0, 50.0, 50.0],
            area=9.0,
            iscrowd=0,
            segmentation=segmentation,
        )
        for i, (segmentation, image_id, category_id) in enumerate(
            zip(segmentations, (7, 9, 7, 9), (3, 18, 18, 3))
        )
    ]
    annotations.append(annotations[0] | dict(id=200, iscrowd=1))
    return dict(images=images, annotations=annotations, categories=categories)


EXPECTED = {  # image → class and mask
    "a/one & two": [('"cat" <x>', MASKS[0]), ("dog: brown", MASKS[2])],
    "ünï": [
        ("dog: brown", MASKS[1]),
        ('"cat" <x>', segmentation_to_mask(POLYGON, HEIGHT, WIDTH) > 0),
    ],
    "empty": [],
}


def draw(points):
    """Pillow draws the polygon many times as large; then the centres of the pixels are read."""
    canvas = Image.new("1", (WIDTH * SCALE, HEIGHT * SCALE))
    ImageDraw.Draw(canvas).polygon([tuple(p) for p in np.array(points) * SCALE - 0.5], fill=1)
    return np.array(canvas)[SCALE // 2 :: SCALE, SCALE // 2 :: SCALE]


def compare(found):
    assert found.keys() == EXPECTED.keys()
    for name, expected in EXPECTED.items():
        assert [label for label, _ in found[name]] == [label for label, _ in expected]
        for (_, one), (_, other) in zip(found[name], expected):
            assert iou(one, other) >= 0.98, name


def test_yolo(tmp_path):
    assert export_labels("yolo", labels(), tmp_path) == 1
    data = yaml.safe_load((tmp_path / "data.yaml").read_text())
    assert data["names"] == {0: "dog: brown", 1: '"cat" <x>'} and data["train"] == "images"
    assert "path" not in data
    found = {}
    for path in (tmp_path / "labels").rglob("*.txt"):
        name = path.relative_to(tmp_path / "labels").with_suffix("").as_posix()
        found[name] = []
        for line in path.read_text().splitlines():
            number, *values = line.split()
            points = np.array(values, dtype=float).reshape(-1, 2)
            assert (points >= 0).all() and (points <= 1).all()
            mask = draw(points * [WIDTH, HEIGHT])
            found[name].append((data["names"][int(number)], mask))
    compare(found)


def test_labelme(tmp_path):
    assert export_labels("labelme", labels(), tmp_path) == 1
    found = {}
    for path in tmp_path.rglob("*.json"):
        content = json.loads(path.read_text())
        name = path.relative_to(tmp_path).with_suffix("").as_posix()
        size = (30, 20) if name == "empty" else (WIDTH, HEIGHT)
        assert (content["imageWidth"], content["imageHeight"]) == size
        assert content["imageData"] is None
        assert (tmp_path / content["imagePath"]).stem == path.stem
        groups = {}
        for i, shape in enumerate(content["shapes"]):
            assert shape["shape_type"] == "polygon"
            group = ("alone", i) if shape["group_id"] is None else shape["group_id"]
            groups.setdefault(group, []).append(shape)
        found[name] = [
            (shapes[0]["label"], np.any([draw(s["points"]) for s in shapes], axis=0))
            for shapes in groups.values()
        ]
    compare(found)


def test_cvat(tmp_path):
    assert export_labels("cvat", labels(), tmp_path) == 1
    root = ElementTree.parse(tmp_path / "annotations.xml").getroot()
    assert root.findtext("version") == "1.1"
    names = [e.text for e in root.iterfind("meta/task/labels/label/name")]
    assert names == ["dog: brown", '"cat" <x>']
    found = {}
    for image in root.iterfind("image"):
        found[image.get("name").rsplit(".", 1)[0]] = masks = []
        canvas = np.zeros((int(image.get("height")), int(image.get("width"))), dtype=bool)
        for element in image.iterfind("mask"):
            left, top, width, height = (
                int(element.get(k)) for k in ("left", "top", "width", "height")
            )
            pixels, value = [], False
            for run in element.get("rle").split(","):
                pixels += [value] * int(run)
                value = not value
            mask = canvas.copy()
            mask[top : top + height, left : left + width] = np.reshape(pixels, (height, width))
            masks.append((element.get("label"), mask))
    compare(found)
    for name, expected in EXPECTED.items():  # and exactly
        for (_, one), (_, other) in zip(found[name], expected):
            np.testing.assert_array_equal(one, other)
    assert [e.get("id") for e in root.iterfind("image")] == ["0", "1", "2"]


@pytest.mark.parametrize("format_name", ["yolo", "labelme", "cvat"])
@pytest.mark.parametrize(
    "part, change, words",
    [
        ("annotations", dict(segmentation=None), r"annotations\[0\] \(id 100\): expected a mask"),
        ("annotations", dict(segmentation=[[1, 2, 3, 4]]), "at least three points"),
        (
            "annotations",
            dict(segmentation=dict(size=[5, 5], counts=[0, 25])),
            r"mask of the size \[70, 90\] of its image, found \[5, 5\]",
        ),
        (
            "annotations",
            dict(segmentation=dict(size=[HEIGHT, WIDTH], counts=[HEIGHT * WIDTH])),
            "without a pixel",
        ),
        ("annotations", dict(category_id=99), r"annotations\[0\]: its category 99"),
        ("images", dict(width=None), r"'width' of its image 7 is None"),
        ("images", dict(file_name="../x.jpg"), "lies outside the folder of the images"),
        ("images", dict(file_name="/x.jpg"), "lies outside the folder of the images"),
        ("images", dict(file_name="n" * 300 + ".png"), "has no name for a file of labels"),
        ("images", dict(file_name="名" * 70 + ".png"), "expected one of 1 to 200 bytes of UTF-8"),
        ("images", dict(file_name="."), "has no name for a file of labels"),
        ("images", dict(file_name="a\0.png"), "has no name for a file of labels"),
        ("images", dict(file_name="\ud800.png"), "has no name for a file of labels"),
        ("categories", dict(name="\ud800"), "is no text that a file can hold"),
        ("images", dict(file_name="empty.png"), "'empty.png' and 'empty.jpg' differ in nothing"),
    ],
)
def test_what_cannot_be_exported(tmp_path, format_name, part, change, words):
    coco = labels()
    coco[part][0].update(change)
    with pytest.raises(ValueError, match=words):
        export_labels(format_name, coco, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "format_name, theirs",
    [("yolo", "labels/ünï.txt"), ("labelme", "empty.json"), ("cvat", "annotations.xml")],
)
def test_what_is_there_is_not_replaced(tmp_path, format_name, theirs):
    file = tmp_path / theirs
    file.parent.mkdir(exist_ok=True)
    file.write_text("theirs")
    with pytest.raises(FileExistsError, match=rf"{theirs} exists, and may hold what you started"):
        export_labels(format_name, labels(), tmp_path)
    assert [p.read_text() for p in tmp_path.rglob("*.*")] == ["theirs"]
    export_labels(format_name, labels(), tmp_path, overwrite=True)
    assert file.read_text() != "theirs"


@pytest.mark.parametrize("format_name", ["yolo", "labelme", "cvat"])
def test_boxes_and_short_polygons_are_not_needed(tmp_path, format_name):
    plain, other = labels(), labels()
    for coco in (plain, other):
        coco["annotations"][0]["segmentation"] = [[10.0, 10, 30, 10, 30, 30]]
    other["annotations"][0].update(bbox=[10, 10, 20, 0], segmentation=[[1, 2, 3, 4]])
    other["annotations"][0]["segmentation"] += plain["annotations"][0]["segmentation"]
    texts = []
    for i, coco in enumerate((plain, other)):
        export_labels(format_name, coco, tmp_path / str(i))
        texts.append({p.name: p.read_text() for p in (tmp_path / str(i)).rglob("*.*")})
    assert texts[0] == texts[1]


def test_a_category_may_be_a_number(tmp_path):
    coco = labels()
    coco["categories"][0]["name"] = 5
    export_labels("cvat", coco, tmp_path / "out")
    text = "".join(path.read_text() for path in (tmp_path / "out").rglob("*.xml"))
    assert 'label="5"' in text
