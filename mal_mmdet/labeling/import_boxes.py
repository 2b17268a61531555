# SPDX-License-Identifier: Apache-2.0
"""Boxes in the formats of other programs as a COCO file."""

from __future__ import annotations

import csv
import math
import os
import posixpath
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from xml.etree import ElementTree

import yaml

from mal_mmdet.progress import track

from .coco_file import read_json
from .images import image_size, leaves_folder

IMAGE_ENDINGS = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp")
LARGEST = 1e15  # of whatever unit; its square is still a number
ROUNDING = 1e-3  # of fractions
CSV_COLUMNS = ("file_name", "x0", "y0", "x1", "y1", "label")


class Box(NamedTuple):
    """A box as it was read.

    Attributes:
        label: Name of its class.
        corners: x0, y0, x1, y1 in pixels of the image.
        where: File and place in it, for errors.
        more: What else the annotation is to have.
    """

    label: str
    corners: tuple[float, ...]
    where: str
    more: dict[str, Any] = {}  # noqa: RUF012


class BoxedImage(NamedTuple):
    """An image and its boxes; ``name`` is relative to the folder of the images.

    ``size`` is width and height, None where only the image knows.
    """

    name: str
    size: tuple[int, int] | None
    boxes: list[Box]
    where: str


def read_classes(values: Sequence[str]) -> list[str]:
    """Names of classes: as given, or from the one file that was given.

    Args:
        values: Names, or one file: YOLO's ``data.yaml``, or a text with a name a line.

    Raises:
        FileNotFoundError: One value that can only be meant as a file, and there is none.
        ValueError: A YAML file without ``names``, or a name occurs twice.
    """
    names = list(values)
    if len(names) == 1 and not Path(names[0]).is_file():
        if Path(names[0]).suffix in (".yaml", ".yml", ".txt"):
            raise FileNotFoundError(f"there is no file {names[0]} of classes")
    elif len(names) == 1:
        path = Path(names[0])
        text = _read_text(path)
        if path.suffix in (".yaml", ".yml"):
            try:
                content = yaml.safe_load(text)
            except (yaml.YAMLError, RecursionError) as error:
                raise ValueError(f"{path} is not valid YAML: {error}") from None
            names = content.get("names") if isinstance(content, dict) else None
            if isinstance(names, dict) and set(names) == set(range(len(names))):
                names = [names[i] for i in range(len(names))]
            # Of lists in lists, by references to each other, a few lines could make gigabytes.
            # YAML reads yes and no as booleans.
            if not isinstance(names, list) or not all(type(n) in (str, int) for n in names):
                raise ValueError(
                    f"{path} has no usable 'names'; expected a list of names (in quotes where "
                    "YAML knows another meaning, such as no), or an object with the keys 0, 1, 2, …"
                )
            names = [str(name) for name in names]
        else:
            names = [line.strip() for line in text.splitlines() if line.strip()]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"classes have to differ, but these occur more than once: {twice}")
    return names


def read_yolo(source: Path, img_dir: Path, classes: Sequence[str] | None) -> Iterator[BoxedImage]:
    """YOLO: a text file per image, in the same subfolders as the images.

    A line is ``class x y width height``, the centre and size of a box as fractions of the image,
    or ``class x y x y x y …``, a polygon, of which the box around it is taken.
    """
    if not classes:
        raise ValueError(
            "YOLO's files number the classes; give their names in order, or data.yaml, by --classes"
        )
    for path in _files(source, ENDINGS["yolo"]):
        if path.name == "classes.txt":
            continue
        stem = path.relative_to(source).with_suffix("")
        name = _find_image(img_dir, stem, path)
        size = width, height = image_size(img_dir / name)
        boxes = []
        for number, line in enumerate(_read_text(path).splitlines(), start=1):
            if not line.strip():
                continue
            where = f"{path}, line {number}"
            label, *texts = line.split()
            if len(texts) != 4 and (len(texts) < 6 or len(texts) % 2):
                raise ValueError(
                    f"{where}: expected 'class x y width height' or 'class x y x y x y …', "
                    f"found {len(texts) + 1} values: {line!r:.80}"
                )
            number_of_class = label.isascii() and label.isdigit() and len(label) < 10
            if not (number_of_class and int(label) < len(classes)):
                raise ValueError(
                    f"{where}: expected the number of a class, 0 to {len(classes) - 1}, "
                    f"found {label!r:.40}"
                )
            values = _numbers(texts, where)
            sides = values[2:] if len(values) == 4 else []
            if not all(-ROUNDING <= v <= 1 + ROUNDING for v in values) or min(sides, default=0) < 0:
                raise ValueError(f"{where}: expected fractions from 0 to 1, found {line!r:.80}")
            if len(values) == 4:
                x, y, w, h = values
                xs, ys = (x - w / 2, x + w / 2), (y - h / 2, y + h / 2)
            else:
                xs, ys = values[::2], values[1::2]
            corners = min(xs) * width, min(ys) * height, max(xs) * width, max(ys) * height
            boxes.append(Box(classes[int(label)], corners, where))
        yield BoxedImage(name, size, boxes, str(path))


def read_voc(source: Path, img_dir: Path, classes: Sequence[str] | None) -> Iterator[BoxedImage]:
    """PASCAL VOC: an XML file per image, in the same subfolders as the images.

    Corners are taken as they stand in the file: most programs write edges there, while VOC's own
    files count pixels from 1. What is ``difficult`` stays so.
    """
    for path in _files(source, ENDINGS["voc"]):
        root = _parse_xml(path)
        name = _beside(path, source, _text(root, "filename", path))
        size = tuple(
            _number(root.findtext(f"size/{key}") or "0", f"{path}, size/{key}")
            for key in ("width", "height")
        )
        boxes = []
        for i, element in enumerate(root.findall("object")):
            where = f"{path}, object {i + 1}"
            texts = [_text(element, f"bndbox/{k}", where) for k in ("xmin", "ymin", "xmax", "ymax")]
            more = dict(difficult=1) if (element.findtext("difficult") or "").strip() == "1" else {}
            boxes.append(
                Box(_text(element, "name", where), tuple(_numbers(texts, where)), where, more)
            )
        known = all(v >= 1 for v in size)  # some programs write 0 for what they do not know
        yield BoxedImage(name, (int(size[0]), int(size[1])) if known else None, boxes, str(path))


def read_labelme(
    source: Path, img_dir: Path, classes: Sequence[str] | None
) -> Iterator[BoxedImage]:
    """LabelMe: a JSON file per image, in the same subfolders as the images; rectangles only."""
    for path in _files(source, ENDINGS["labelme"]):
        content = read_json(path)
        if not isinstance(content, dict) or not isinstance(content.get("shapes"), list):
            raise ValueError(f"{path}: expected LabelMe's object with a list 'shapes'")
        image = content.get("imagePath")
        if not isinstance(image, str) or not image:
            raise ValueError(f"{path}: expected a text as 'imagePath', found {image!r:.40}")
        boxes = []
        for i, shape in enumerate(content["shapes"]):
            where = f"{path}, shapes[{i}]"
            if not isinstance(shape, dict) or shape.get("shape_type") != "rectangle":
                kind = shape.get("shape_type") if isinstance(shape, dict) else shape
                raise ValueError(f"{where}: expected a shape_type 'rectangle', found {kind!r:.40}")
            if not isinstance(shape.get("label"), str):
                raise ValueError(f"{where}: expected a text as 'label', found {shape.get('label')}")
            points = shape.get("points")
            # Two opposite corners in any order; programs of its kind write all four.
            pairs = isinstance(points, list) and all(
                isinstance(point, list) and len(point) == 2 for point in points
            )
            if not pairs or len(points) not in (2, 4):
                raise ValueError(f"{where}: expected two or four points, found {points!r:.80}")
            xs, ys = zip(*(_numbers(point, where) for point in points))
            boxes.append(Box(shape["label"], (min(xs), min(ys), max(xs), max(ys)), where))
        size = content.get("imageWidth"), content.get("imageHeight")
        known = all(isinstance(v, int) and v > 0 for v in size)
        name = _beside(path, source, image)
        yield BoxedImage(name, size if known else None, boxes, str(path))


def read_csv(source: Path, img_dir: Path, classes: Sequence[str] | None) -> Iterator[BoxedImage]:
    """CSV with a header: file_name, x0, y0, x1, y1, label and, if wanted, width, height.

    A row is a box, its corners in pixels. Other columns are ignored.
    """
    images: dict[str, BoxedImage] = {}
    with open(source, encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file, strict=True)
        try:
            missing = [c for c in CSV_COLUMNS if c not in (reader.fieldnames or ())]
            if missing:
                raise ValueError(
                    f"{source}, line 1: expected the columns {', '.join(CSV_COLUMNS)}[, width, "
                    f"height], found {reader.fieldnames}"
                )
            for row in track(reader, "reading boxes", "boxes"):
                where = f"{source}, line {reader.line_num}"
                if None in row or None in row.values():
                    raise ValueError(
                        f"{where}: expected {len(reader.fieldnames)} values, found "
                        f"{[v for v in row.values() if v is not None]!r:.80}"
                    )
                name = row["file_name"] and posixpath.normpath(row["file_name"])
                size = None
                if row.get("width") and row.get("height"):
                    width, height = _numbers([row["width"], row["height"]], where)
                    size = (int(width), int(height)) if min(width, height) >= 1 else None
                image = images.setdefault(name, BoxedImage(name, size, [], where))
                if image.size != size:
                    raise ValueError(
                        f"{where}: expected the size {image.size} of the same image at "
                        f"{image.where}, found {size}"
                    )
                corners = tuple(_numbers([row[c] for c in CSV_COLUMNS[1:5]], where))
                label = row["label"].strip()
                if not label:
                    raise ValueError(f"{where}: expected the name of a class as label")
                image.boxes.append(Box(label, corners, where))
        except (csv.Error, UnicodeDecodeError) as error:
            raise ValueError(f"{source}, line {reader.line_num}: {error}") from None
    yield from images.values()


IMPORTS: dict[str, Callable[[Path, Path, Sequence[str] | None], Iterator[BoxedImage]]] = dict(
    yolo=read_yolo, voc=read_voc, labelme=read_labelme, csv=read_csv
)
"""Readers of boxes, by the name of their format."""

ENDINGS = dict(yolo=".txt", voc=".xml", labelme=".json", csv=".csv")
"""What the names of files that they read in a folder end with."""


def import_boxes(
    format_name: str,
    source: str | Path,
    img_dir: str | Path | None = None,
    classes: Sequence[str] | None = None,
) -> dict[str, Any]:
    """Reads boxes in another format.

    Boxes that no image can have, such as empty ones, are kept: labeling lists them.

    Args:
        format_name: A key of ``IMPORTS``.
        source: Folder of the annotations; for ``csv`` the file.
        img_dir: Folder of the images; that of the annotations if not given. If given, every
            image has to exist.
        classes: Names of the classes in order; if not given, those that occur, by alphabet.

    Returns:
        COCO file without masks; ids count from 1.

    Raises:
        FileNotFoundError: No such source, or an image does not exist.
        ValueError: Something in the source is not as expected; names file and place.
    """
    source = Path(source)
    if not (source.is_file() if format_name == "csv" else source.is_dir()):
        kind = "file" if format_name == "csv" else "folder"
        raise FileNotFoundError(f"{source} is no {kind}; format {format_name!r} is read from one")
    folder = Path(img_dir or (source.parent if source.is_file() else source))
    images = list(IMPORTS[format_name](source, folder, classes))
    return _to_coco(images, folder, img_dir is not None, classes)


def _to_coco(
    found: Sequence[BoxedImage], img_dir: Path, must_exist: bool, classes: Sequence[str] | None
) -> dict[str, Any]:
    if classes is None:
        classes = sorted({box.label for image in found for box in image.boxes})
    category_ids = {name: i + 1 for i, name in enumerate(classes)}
    images, annotations = [], []
    names: dict[str, str] = {}
    for image in track(found, "checking images", "images"):
        if image.name in names:
            raise ValueError(
                f"{image.where}: its image {image.name!r} is that of {names[image.name]} too"
            )
        names[image.name] = image.where
        if leaves_folder(image.name):
            raise ValueError(
                f"{image.where}: its image {image.name!r:.80} has to lie below the folder of images"
            )
        path = img_dir / image.name
        if (must_exist or image.size is None) and not os.path.isfile(path):
            raise FileNotFoundError(
                f"{image.where}: image {path} does not exist; name the folder of the images with "
                "--img-dir"
            )
        width, height = image.size or image_size(path)
        image_id = len(images) + 1
        images.append(dict(id=image_id, file_name=image.name, width=width, height=height))
        for box in image.boxes:
            if box.label not in category_ids:
                raise ValueError(
                    f"{box.where}: expected one of the classes {list(classes)!r:.200}, found "
                    f"{box.label!r}"
                )
            x0, y0, x1, y1 = box.corners
            annotations.append(
                dict(
                    id=len(annotations) + 1,
                    image_id=image_id,
                    category_id=category_ids[box.label],
                    bbox=[x0, y0, x1 - x0, y1 - y0],
                    area=(x1 - x0) * (y1 - y0),
                    iscrowd=0,
                    **box.more,
                )
            )
    categories = [dict(id=i, name=name) for name, i in category_ids.items()]
    return dict(images=images, annotations=annotations, categories=categories)


def files_in(source: Path, ending: str) -> list[Path]:
    """The files of a folder and of all in it, through links too; ``ending`` in any case."""
    files, root = [], Path(os.path.realpath(source))
    for folder, folders, names in os.walk(source, followlinks=True):
        files += [Path(folder, name) for name in names]
        here = Path(folder)
        above = {os.path.realpath(path) for path in (here, *here.parents)}
        for name in folders[:]:
            real = os.path.realpath(here / name)
            # What it links to would come twice, or for ever.
            if (here / name).is_symlink() and (real in above or Path(real).is_relative_to(root)):
                folders.remove(name)
    return sorted(path for path in files if path.suffix.lower() == ending)


def _files(source: Path, ending: str) -> Iterator[Path]:
    files = files_in(source, ending)
    if not files:
        raise FileNotFoundError(f"{source} holds no {ending} files")
    return track(files, "reading boxes", "files")


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: expected a text in UTF-8: {error}") from None


def _find_image(img_dir: Path, stem: Path, where: Path) -> str:
    for ending in IMAGE_ENDINGS:
        for variant in (ending, ending.upper()):
            name = f"{stem.as_posix()}{variant}"
            if (img_dir / name).is_file():
                return name
    raise FileNotFoundError(
        f"{where}: no image {img_dir / stem}.* with one of the endings {', '.join(IMAGE_ENDINGS)}; "
        "name the folder of the images with --img-dir; below it, images lie as their boxes' files "
        "do below the source"
    )


def _beside(path: Path, source: Path, image: str) -> str:
    """Name of the image of an annotation file: in the same subfolder, whatever paths it had."""
    name = image.strip().replace("\\", "/").rsplit("/", 1)[-1]
    return (path.relative_to(source).parent / name).as_posix()


def _number(value: Any, where: str) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not abs(number) < LARGEST:
        raise ValueError(f"{where}: expected a number, found {value!r:.40}")
    return number


def _numbers(values: Iterable[Any], where: str) -> list[float]:
    return [_number(value, where) for value in values]


class _NoDoctype(ElementTree.TreeBuilder):
    """Refuses document types, and with them entities: annotations have none, attacks do."""

    def doctype(self, name: str, pubid: str | None, system: str | None) -> None:
        raise ValueError("expected annotations without <!DOCTYPE>")


def _parse_xml(path: Path) -> ElementTree.Element:
    try:
        root = ElementTree.parse(path, ElementTree.XMLParser(target=_NoDoctype())).getroot()
    except (ElementTree.ParseError, LookupError, ValueError) as error:
        raise ValueError(f"{path}: not the XML of PASCAL VOC: {error}") from None
    if root.tag != "annotation":
        raise ValueError(f"{path}: expected the element <annotation>, found <{root.tag}>")
    return root


def _text(element: ElementTree.Element, path: str, where: str | Path) -> str:
    text = (element.findtext(path) or "").strip()
    if not text:
        raise ValueError(f"{where}: expected <{path}>, found none or an empty one")
    return text
