# SPDX-License-Identifier: Apache-2.0
import json

import numpy as np
import pytest
from PIL import Image

from mal_mmdet.labeling import (
    export_labels,
    files_in,
    find_problems,
    image_size,
    import_boxes,
    read_classes,
    segmentation_to_mask,
)
from tests.labeling.test_export import labels
from tests.tiny_sets import HEIGHT, WIDTH, voc_object, write, write_image

# file, class, x0, y0, x1, y1
BOXES = [
    ("a/1.jpg", "dog", 6.0, 9.0, 66.0, 54.0),
    ("a/1.jpg", "cat", 0.0, 0.0, 120.0, 90.0),
    ("2.PNG", "dog", 30.0, 18.0, 30.6, 18.9),
]
IMAGES = ["a/1.jpg", "2.PNG", "none.jpg"]


def write_yolo(folder):
    sizes = np.array([WIDTH, HEIGHT])
    for name in IMAGES:
        lines = ""
        for file_name, label, *corners in BOXES:
            if file_name == name:
                low, high = np.reshape(corners, (2, 2)) / sizes
                values = *(low + high) / 2, *(high - low)
                lines += f"{['cat', 'dog'].index(label)} {' '.join(map(str, values))}\n"
        write(folder / name.replace(".jpg", ".txt").replace(".PNG", ".txt"), lines)


def write_voc(folder):
    for name in IMAGES:
        objects = "".join(
            voc_object(b[1], b[2:], int(b[1] == "cat")) for b in BOXES if b[0] == name
        )
        size = f"<size><width>{WIDTH}</width><height>{HEIGHT}</height></size>"
        size = "" if name == "2.PNG" else size
        body = f"<filename>{name.rsplit('/', 1)[-1]}</filename>{size}{objects}"
        write(folder / f"{name[:-4]}.xml", f"<?xml version='1.0'?><annotation>{body}</annotation>")


def write_labelme(folder):
    for name in IMAGES:
        shapes = [
            # Any two corners.
            dict(label=b[1], points=[[b[4], b[3]], [b[2], b[5]]], shape_type="rectangle")
            for b in BOXES
            if b[0] == name
        ]
        content = dict(imagePath=f"C:\\x\\{name.rsplit('/', 1)[-1]}", shapes=shapes)
        write(folder / f"{name[:-4]}.json", content | dict(imageWidth=WIDTH, imageHeight=HEIGHT))


def write_csv(folder):
    rows = [",".join(map(str, (b[0], *b[2:], b[1], "note"))) for b in BOXES]
    header = "file_name,x0,y0,x1,y1,label,more"
    write(folder / "boxes.csv", "\ufeff" + "\n".join([header, *rows]) + "\n")


WRITERS = dict(yolo=write_yolo, voc=write_voc, labelme=write_labelme, csv=write_csv)


@pytest.fixture
def folders(tmp_path):
    for name in IMAGES:
        write_image(tmp_path / "images" / name)
    (tmp_path / "boxes").mkdir()
    return tmp_path / "boxes", tmp_path / "images"


@pytest.mark.parametrize("format_name", WRITERS)
def test_every_format_gives_the_same_boxes(folders, format_name):
    source, img_dir = folders
    WRITERS[format_name](source)
    source = source / "boxes.csv" if format_name == "csv" else source
    coco = import_boxes(
        format_name, source, img_dir, ["cat", "dog"] if format_name == "yolo" else None
    )
    assert coco["categories"] == [dict(id=1, name="cat"), dict(id=2, name="dog")]
    assert all((i["width"], i["height"]) == (WIDTH, HEIGHT) for i in coco["images"])
    files = {image["id"]: image["file_name"] for image in coco["images"]}
    # A row of a CSV file is a box: what has none is not in it.
    assert sorted(files.values()) == sorted(IMAGES[: 2 if format_name == "csv" else 3])
    names = {category["id"]: category["name"] for category in coco["categories"]}
    found = {}
    for ann in coco["annotations"]:
        x, y, w, h = ann["bbox"]
        found[files[ann["image_id"]], names[ann["category_id"]]] = [x, y, x + w, y + h]
        assert ann["area"] == w * h and ann["iscrowd"] == 0 and "segmentation" not in ann
        difficult = format_name == "voc" and names[ann["category_id"]] == "cat"
        assert ann.get("difficult", 0) == difficult
    assert len(coco["annotations"]) == len(BOXES) and find_problems(coco) == {}
    for name, label, *corners in BOXES:
        assert found[name, label] == pytest.approx(corners, abs=1e-9)


def test_boxes_of_exported_polygons(tmp_path):
    """Out as YOLO's polygons, and back: the boxes of the masks, of drawn ones to the pixel."""
    coco = labels()
    export_labels("yolo", coco, tmp_path)
    for image in coco["images"]:
        write_image(tmp_path / "images" / image["file_name"], (image["width"], image["height"]))
    classes = read_classes([str(tmp_path / "data.yaml")])
    back = import_boxes("yolo", tmp_path / "labels", tmp_path / "images", classes)
    assert {c["name"] for c in back["categories"]} == {c["name"] for c in coco["categories"]}
    assert {i["file_name"] for i in back["images"]} == {i["file_name"] for i in coco["images"]}
    expected = []
    for ann in coco["annotations"][:4]:
        image = next(i for i in coco["images"] if i["id"] == ann["image_id"])
        mask = segmentation_to_mask(ann["segmentation"], image["height"], image["width"])
        (rows,), (columns,) = mask.any(1).nonzero(), mask.any(0).nonzero()
        expected.append([columns[0], rows[0], np.ptp(columns) + 1, np.ptp(rows) + 1])
    found = [ann["bbox"] for ann in back["annotations"]]
    np.testing.assert_allclose(sorted(found), sorted(expected), atol=1.5)


def test_csv_with_sizes_needs_no_images(tmp_path):
    path = tmp_path / "boxes.csv"
    write(path, 'file_name,x0,y0,x1,y1,label,width,height\n"a, b.jpg",1,2,3,5,x,40,30\n')
    coco = import_boxes("csv", path)
    assert coco["images"] == [dict(id=1, file_name="a, b.jpg", width=40, height=30)]
    assert coco["annotations"][0]["bbox"] == [1, 2, 2, 3]


def test_csv_with_names_that_are_written_in_two_ways(tmp_path):
    path = tmp_path / "boxes.csv"
    rows = "a/b.jpg,1,2,3,5,cat,40,30\n./a/b.jpg,2,2,3,5,cat ,40,30\n"
    write(path, f"file_name,x0,y0,x1,y1,label,width,height\n{rows}")
    coco = import_boxes("csv", path)
    assert [image["file_name"] for image in coco["images"]] == ["a/b.jpg"]
    assert [category["name"] for category in coco["categories"]] == ["cat"]
    assert len(coco["annotations"]) == 2


def test_fractions_that_were_rounded(tmp_path):
    (tmp_path / "labels").mkdir()
    Image.new("RGB", (30, 20)).save(tmp_path / "1.png")
    write(tmp_path / "labels/1.txt", "0 0.5 0.5 1.0000001 1\n")
    [ann] = import_boxes("yolo", tmp_path / "labels", tmp_path, ["cat"])["annotations"]
    assert ann["bbox"] == pytest.approx([0, 0, 30, 20], abs=1e-4)


def test_size_of_an_image_as_it_is_loaded(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (30, 20)).save(tmp_path / "turned.jpg", exif=exif)
    assert image_size(tmp_path / "turned.jpg") == (20, 30)


def test_classes(tmp_path):
    write(tmp_path / "classes.txt", "cat\n\n big dog \n")
    write(tmp_path / "list.yaml", "names: [cat, 7]")
    write(tmp_path / "object.yml", "names: {1: b, 0: a}")
    write(tmp_path / "bad.yaml", "names: {1: b}")
    assert read_classes(["cat", "dog"]) == ["cat", "dog"]
    assert read_classes([str(tmp_path / "classes.txt")]) == ["cat", "big dog"]
    assert read_classes([str(tmp_path / "list.yaml")]) == ["cat", "7"]
    assert read_classes([str(tmp_path / "object.yml")]) == ["a", "b"]
    with pytest.raises(ValueError, match=r"bad.yaml has no usable 'names'"):
        read_classes([str(tmp_path / "bad.yaml")])
    bomb = "".join(
        f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9 if i else ['x'])}]\n" for i in range(12)
    )
    for text, words in (
        ("names: [a, b", "is not valid YAML"),
        ("names: " + "[" * 3000, "is not valid YAML"),
        (bomb + "names: *a11", "has no usable 'names'"),
        ("names: [yes, no, cat]", "has no usable 'names'.*in quotes"),
    ):
        write(tmp_path / "bad.yaml", text)
        with pytest.raises(ValueError, match=f"bad.yaml {words}"):
            read_classes([str(tmp_path / "bad.yaml")])
    with pytest.raises(ValueError, match=r"more than once: \['a'\]"):
        read_classes(["a", "b", "a"])
    assert read_classes(["cat"]) == ["cat"]
    for name in ("data.yml", "folder/classes.txt"):
        with pytest.raises(FileNotFoundError, match=f"there is no file {name} of classes"):
            read_classes([name])


def test_sizes_that_no_image_has_are_unknown(tmp_path):
    Image.new("RGB", (31, 17)).save(tmp_path / "1.jpg")
    for size in ("0,0", "-5,3.7", "0.5,9"):
        write(tmp_path / "boxes.csv", f"{HEADER},width,height\n1.jpg,1,2,3,4,dog,{size}\n")
        (image,) = import_boxes("csv", tmp_path / "boxes.csv")["images"]
        assert (image["width"], image["height"]) == (31, 17)


GOOD = "0 0.5 0.5 0.1 0.1\n"
HEADER = "file_name,x0,y0,x1,y1,label"
BOX = "<bndbox><xmin>1</xmin><ymin>2</ymin><xmax>3</xmax><ymax>4</ymax></bndbox>"
SIZE = "<size><width>9</width><height>9</height></size>"


def voc(body, filename="1.jpg"):
    return f"<annotation><filename>{filename}</filename>{SIZE}{body}</annotation>"


def labelme(*shapes, **change):
    content = dict(imagePath="1.jpg", imageWidth=9, imageHeight=9, shapes=list(shapes))
    return json.dumps(content | change)


RECTANGLE = dict(label="dog", shape_type="rectangle", points=[[1, 2], [3, 4]])


@pytest.mark.parametrize(
    "format_name, content, words",
    [
        ("yolo", GOOD + "0 0.5 0.5\n", "1.txt, line 2: expected 'class x y .* found 3 values"),
        ("yolo", GOOD + "0 0.5 0.5 0.1 x\n", "1.txt, line 2: expected a number, found 'x'"),
        ("yolo", "0 0.5 nan 0.1 0.1", "1.txt, line 1: expected a number, found 'nan'"),
        ("yolo", "\n0 50 50 10 10", "1.txt, line 2: expected fractions from 0 to 1"),
        ("yolo", "0 0.5 0.5 -0.0005 0.1", "1.txt, line 1: expected fractions from 0 to 1"),
        ("yolo", "2 0.5 0.5 0.1 0.1", "1.txt, line 1: .* a class, 0 to 1, found '2'"),
        ("yolo", "dog 0.5 0.5 0.1 0.1", "1.txt, line 1: .* a class, 0 to 1, found 'dog'"),
        ("yolo", "9" * 5000 + " 0.5 0.5 0.1 0.1", "1.txt, line 1: .* a class, 0 to 1, found '999"),
        ("yolo", b"0 0.5 \xff", "1.txt: expected a text in UTF-8"),
        ("csv", f"{HEADER}\n1.jpg,1,2,3,1e308,dog\n", "line 2: expected a number, found '1e308'"),
        ("csv", f"{HEADER}\n../1.jpg,1,2,3,4,dog\n", "'../1.jpg' has to lie below the folder"),
        ("csv", HEADER.encode() + b"\n\xff", "boxes.csv, line .: 'utf-8' codec can't decode"),
        (
            "voc",
            "<?xml version='1.0' encoding='foo'?><annotation/>",
            "not the XML .* encoding: foo",
        ),
        (
            "labelme",
            labelme(dict(RECTANGLE, points=[[1, 2], [10**400, 3]])),
            r"1.json, shapes\[0\]: expected a number, found 1000",
        ),
        ("csv", "file,x0\n", r"boxes.csv, line 1: expected the columns file_name, .*\['file', 'x"),
        ("csv", f"{HEADER}\n1.jpg,1,2,3,4\n", "boxes.csv, line 2: expected 6 values, found"),
        ("csv", f"{HEADER}\n1.jpg,1,2,3,4,a,b\n", "boxes.csv, line 2: expected 6 values, found"),
        ("csv", f"{HEADER}\n1.jpg,1,,3,4,dog\n", "boxes.csv, line 2: expected a number, found ''"),
        ("csv", f"{HEADER}\n1.jpg,1,2,3,4,cow\n", "boxes.csv, line 2: .*'dog'.* found 'cow'"),
        ("csv", f"{HEADER}\n1.jpg,1,2,3,4, \n", "boxes.csv, line 2: expected the name of a class"),
        ("csv", f'{HEADER}\n1.jpg,1,2,3,4,"do', "boxes.csv, line .: unexpected end of data"),
        (
            "csv",
            f"{HEADER},width,height\n1.jpg,1,2,3,4,dog,9,9\n1.jpg,1,2,3,4,dog,8,9\n",
            r"boxes.csv, line 3: expected the size \(9, 9\) .*line 2, found \(8, 9\)",
        ),
        ("voc", "<annotation>", "1.xml: not the XML of PASCAL VOC: no element found: line 1"),
        ("voc", "<a/>", "1.xml: expected the element <annotation>, found <a>"),
        (
            "voc",
            '<!DOCTYPE annotation [<!ENTITY e SYSTEM "secret.txt">]>' + voc("&e;"),
            "1.xml: .* without <!DOCTYPE>",
        ),
        ("voc", voc("", filename=""), "1.xml: expected <filename>, found none"),
        ("voc", voc(f"<object>{BOX}</object>"), "1.xml, object 1: expected <name>, found none"),
        (
            "voc",
            voc(f"<object><name>dog</name>{BOX.replace('3', 'x')}</object>"),
            "1.xml, object 1: expected a number, found 'x'",
        ),
        (
            "voc",
            voc("<object><name>dog</name></object>"),
            "1.xml, object 1: expected <bndbox/xmin>, found none",
        ),
        ("voc", voc(f"<object><name>cow</name>{BOX}</object>"), "1.xml, object 1: .* found 'cow'"),
        ("labelme", "{", "1.json is not valid JSON"),
        ("labelme", "[]", "1.json: expected LabelMe's object with a list 'shapes'"),
        ("labelme", labelme(imagePath=3), "1.json: expected a text as 'imagePath', found 3"),
        ("labelme", labelme(3), r"1.json, shapes\[0\]: expected a shape_type 'rectangle', found 3"),
        (
            "labelme",
            labelme(RECTANGLE, RECTANGLE | dict(shape_type="polygon")),
            r"1.json, shapes\[1\]: expected a shape_type 'rectangle', found 'polygon'",
        ),
        (
            "labelme",
            labelme(RECTANGLE | dict(points=[[1, 2]])),
            r"1.json, shapes\[0\]: expected two or four points, found \[\[1, 2\]\]",
        ),
        (
            "labelme",
            labelme(RECTANGLE | dict(points=[[1, 2], [3, None]])),
            r"1.json, shapes\[0\]: expected a number, found None",
        ),
        (
            "labelme",
            labelme(RECTANGLE | dict(label=None)),
            r"1.json, shapes\[0\]: expected a text as 'label', found None",
        ),
    ],
)
def test_bad_input_is_named(folders, format_name, content, words):
    source, img_dir = folders
    write_image(img_dir / "1.jpg")
    endings = dict(yolo="1.txt", voc="1.xml", labelme="1.json", csv="boxes.csv")
    path = source / endings[format_name]
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        write(path, content)
    with pytest.raises(ValueError, match=words):
        import_boxes(format_name, path if format_name == "csv" else source, img_dir, ["cat", "dog"])


@pytest.mark.parametrize("format_name", WRITERS)
def test_missing_images_and_folders(folders, format_name):
    source, img_dir = folders
    WRITERS[format_name](source)
    (img_dir / "2.PNG").unlink()
    path = source / "boxes.csv" if format_name == "csv" else source
    with pytest.raises(FileNotFoundError, match=r"2.*--img-dir"):
        import_boxes(format_name, path, img_dir, ["cat", "dog"])
    with pytest.raises(FileNotFoundError, match=r"nowhere is no f"):
        import_boxes(format_name, source / "nowhere", img_dir, ["cat", "dog"])
    if format_name != "csv":
        with pytest.raises(FileNotFoundError, match=r"images holds no \.\w+ files"):
            import_boxes(format_name, img_dir, img_dir, ["cat", "dog"])


def test_yolo_needs_classes(folders):
    with pytest.raises(ValueError, match="give their names in order"):
        import_boxes("yolo", *folders)


def test_two_files_of_one_image(folders):
    source, _ = folders
    for name in ("1.xml", "2.xml"):
        write(source / name, voc(""))
    with pytest.raises(ValueError, match=r"2.xml: its image '1.jpg' is that of .*1.xml too"):
        import_boxes("voc", source)


def test_folders_that_are_links(folders):
    boxes, images = folders
    write_yolo(boxes.parent / "elsewhere")
    (boxes / "linked").symlink_to(boxes.parent / "elsewhere/a")
    (boxes / "linked/again").symlink_to(boxes)  # for ever
    (images / "linked").symlink_to(images / "a")
    coco = import_boxes("yolo", boxes, images, ["cat", "dog"])
    assert [image["file_name"] for image in coco["images"]] == ["linked/1.jpg"]
    assert len(coco["annotations"]) == 2
    write(boxes / "real/2.txt", "")
    (boxes / "latest").symlink_to("real")
    assert files_in(boxes, ".txt") == [boxes / "linked/1.txt", boxes / "real/2.txt"]
