# SPDX-License-Identifier: Apache-2.0
"""Label files in the formats of other programs.

None of them knows crowds, which are left out.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any
from xml.etree import ElementTree

import numpy as np
import yaml
from pycocotools import mask as mask_utils

from mal_mmdet.progress import track

from .coco_file import find_broken_images, find_problems, image_file, is_about_box, write_text
from .images import leaves_folder
from .polygons import (
    join_parts,
    mask_problem,
    mask_to_polygons,
    segmentation_to_mask,
    whole_polygons,
)

LONGEST_NAME = 200  # of a file, in bytes; most file systems take 255, and endings come to it
Files = Iterator[tuple[str, str]]  # name relative to the output folder, content


def to_yolo(coco: dict[str, Any]) -> Files:
    """YOLO's segmentation format: ``data.yaml``, and ``labels/<name of image>.txt`` for each.

    A line is the class, counted from 0 in the order of the categories, and one polygon as
    fractions of width and height. Several parts are joined by lines without width.

    Args:
        coco: Label file that :func:`check_exportable` accepts.
    """
    names = [str(category["name"]) for category in coco["categories"]]
    # Without a path Ultralytics looks beside this file, with a relative one where it was started.
    data = dict(train="images", val="images", names=dict(enumerate(names)))
    yield "data.yaml", yaml.safe_dump(data, sort_keys=False, allow_unicode=True)
    classes = {category["id"]: i for i, category in enumerate(coco["categories"])}
    for image, anns in _by_image(coco):
        size = image["width"], image["height"]
        lines = []
        for ann in anns:
            points = np.reshape(join_parts(_polygons(ann, image)), (-1, 2)) / size
            numbers = (f"{v:.6f}" for v in points.clip(0, 1).ravel())
            lines.append(f"{classes[ann['category_id']]} {' '.join(numbers)}\n")
        yield f"labels/{_stem(image)}.txt", "".join(lines)


def to_labelme(coco: dict[str, Any]) -> Files:
    """LabelMe: a JSON file per image, to be laid beside it.

    The parts of an object are polygons with the same ``group_id``, which is null for objects of
    one part.

    Args:
        coco: Label file that :func:`check_exportable` accepts.
    """
    names = {category["id"]: str(category["name"]) for category in coco["categories"]}
    for image, anns in _by_image(coco):
        shapes = []
        for i, ann in enumerate(anns):
            polygons = _polygons(ann, image)
            shapes += [
                dict(
                    label=names[ann["category_id"]],
                    points=np.reshape(polygon, (-1, 2)).tolist(),
                    group_id=i if len(polygons) > 1 else None,
                    shape_type="polygon",
                    flags={},
                )
                for polygon in polygons
            ]
        content = dict(
            version="5.0.0",
            flags={},
            shapes=shapes,
            imagePath=PurePosixPath(image_file(image)).name,
            imageData=None,
            imageHeight=image["height"],
            imageWidth=image["width"],
        )
        yield f"{_stem(image)}.json", json.dumps(content, indent=1)


def to_cvat(coco: dict[str, Any]) -> Files:
    """CVAT's XML 1.1 for images: one ``annotations.xml`` with exact masks.

    Args:
        coco: Label file that :func:`check_exportable` accepts.

    Raises:
        ValueError: A mask has not one pixel.
    """
    names = {category["id"]: str(category["name"]) for category in coco["categories"]}
    root = ElementTree.Element("annotations")
    ElementTree.SubElement(root, "version").text = "1.1"
    task = ElementTree.SubElement(ElementTree.SubElement(root, "meta"), "task")
    labels = ElementTree.SubElement(task, "labels")
    for name in names.values():
        ElementTree.SubElement(ElementTree.SubElement(labels, "label"), "name").text = name
    for i, (image, anns) in enumerate(_by_image(coco)):
        size = dict(width=str(image["width"]), height=str(image["height"]))
        attributes = dict(id=str(i), name=image_file(image), **size)
        element = ElementTree.SubElement(root, "image", attributes)
        for ann in anns:
            mask = _mask(ann, image)
            if not mask.any():  # polygons between the centres of pixels
                raise ValueError(f"mask of annotation {ann['id']!r} has not one pixel")
            label = dict(label=names[ann["category_id"]], source="auto", occluded="0")
            attributes = label | _cvat_mask(mask) | dict(z_order="0")
            ElementTree.SubElement(element, "mask", attributes)
    ElementTree.indent(root)
    body = ElementTree.tostring(root, encoding="unicode")
    yield "annotations.xml", f'<?xml version="1.0" encoding="utf-8"?>\n{body}\n'


EXPORTS: dict[str, Callable[[dict[str, Any]], Files]] = dict(
    yolo=to_yolo, labelme=to_labelme, cvat=to_cvat
)
"""Writers of masks, by the name of their format."""


def check_masks(coco: dict[str, Any], allow_outside: bool = False, boxes: bool = True) -> None:
    """Checks that all annotations but crowds have a box and a mask.

    Args:
        coco: COCO file, see :func:`read_coco`.
        allow_outside: See :func:`find_problems`.
        boxes: See :func:`refuse_problems`.

    Raises:
        ValueError: A box, mask or image entry cannot be used.
    """
    for problem in find_broken_images(coco, allow_outside).values():
        raise ValueError(problem)
    for i, problem in find_problems(coco, allow_outside=allow_outside).items():
        if boxes or not is_about_box(problem):
            raise ValueError(f"annotations[{i}]: {problem}")
    images = {image["id"]: image for image in coco["images"]}
    for i, ann in enumerate(track(coco["annotations"], "checking masks", "masks")):
        problem = _mask_problem(ann.get("segmentation"), images[ann["image_id"]])
        if problem and not ann.get("iscrowd"):
            raise ValueError(f"annotations[{i}] (id {ann['id']!r}): {problem}")


def check_exportable(coco: dict[str, Any]) -> None:
    """Checks that a COCO file can be exported.

    Raises:
        ValueError: As :func:`check_masks`, a name cannot be written, an image lies outside its
            folder, or two images would share a file.
    """
    check_masks(coco, allow_outside=True, boxes=False)  # no format has both box and mask
    for name in (str(category["name"]) for category in coco["categories"]):
        if not _is_unicode(name):
            raise ValueError(f"the category {name!r:.60} is no text that a file can hold")
    for name in map(image_file, coco["images"]):
        if leaves_folder(name):
            raise ValueError(
                f"the image {name!r:.60} lies outside the folder of the images, and so would its "
                "labels outside theirs; expected file names without '..' that are not absolute"
            )
        length = len(Path(name).name.encode()) if _is_unicode(name) else 0
        if "\0" in name or not 0 < length <= LONGEST_NAME:
            raise ValueError(
                f"the image {name!r:.60} has no name for a file of labels: expected one of 1 to "
                f"{LONGEST_NAME} bytes of UTF-8"
            )
    stems: dict[str, str] = {}
    for image in coco["images"]:
        stem, name = _stem(image), image_file(image)
        if stem in stems:
            raise ValueError(
                f"images {stems[stem]!r} and {name!r} differ in nothing but the ending, and would "
                "share one file of labels; rename one of them"
            )
        stems[stem] = name


def _is_unicode(text: str) -> bool:
    """Whether UTF-8 can hold a text; JSON may have halves of a character in it."""
    return text.isascii() or not any("\ud800" <= letter <= "\udfff" for letter in text)


def export_labels(
    format_name: str, coco: dict[str, Any], out_dir: str | Path, overwrite: bool = False
) -> int:
    """Writes a label file in another format.

    Args:
        format_name: A key of ``EXPORTS``.
        coco: COCO file with masks, see :func:`read_coco`.
        out_dir: Folder to write to.
        overwrite: Whether files that are there already are replaced.

    Returns:
        Number of crowd annotations, which were left out.

    Raises:
        ValueError: See :func:`check_exportable`; nothing is written then.
        FileExistsError: A file is there already, and would be lost; nothing is written then.
    """
    check_exportable(coco)
    # Without annotations there is nothing to convert: that gives the names, at once.
    names = (name for name, _ in EXPORTS[format_name]({**coco, "annotations": []}))
    for path in (Path(out_dir) / name for name in names):
        if path.exists() and not overwrite:
            raise FileExistsError(
                f"{path} exists, and may hold what you started from: export to a new folder, or "
                "allow it to be replaced by --overwrite"
            )
    for name, content in EXPORTS[format_name](coco):
        write_text(Path(out_dir) / name, content)
    return sum(bool(ann.get("iscrowd")) for ann in coco["annotations"])


def _by_image(coco: dict[str, Any]) -> Iterator[tuple[dict, list[dict]]]:
    """Every image with its annotations, crowds left out."""
    anns: dict = {image["id"]: [] for image in coco["images"]}
    for ann in coco["annotations"]:
        if not ann.get("iscrowd"):
            anns[ann["image_id"]].append(ann)
    for image in track(
        coco["images"], "converting masks", "images", disable=not coco["annotations"]
    ):
        yield image, anns[image["id"]]


def _stem(image: dict) -> str:
    """Name of an image without its ending, inside whatever folder it is put in."""
    return PurePosixPath(image_file(image)).with_suffix("").as_posix()


def _mask_problem(segmentation: Any, image: dict) -> str | None:
    if problem := mask_problem(segmentation, image):
        return problem
    if isinstance(segmentation, list):
        return None
    counts = segmentation["counts"]
    area = sum(counts[1::2]) if isinstance(counts, list) else mask_utils.area(segmentation)
    return None if area else "expected a mask, found one without a pixel"


def _mask(ann: dict, image: dict) -> np.ndarray:
    return segmentation_to_mask(ann["segmentation"], image["height"], image["width"])


def _polygons(ann: dict, image: dict) -> list[list[float]]:
    """Polygons as they stand in the file, less those of two points, or the outlines of an RLE."""
    if isinstance(ann["segmentation"], list):
        return whole_polygons(ann["segmentation"])
    return mask_to_polygons(_mask(ann, image))


def _cvat_mask(mask: np.ndarray) -> dict[str, str]:
    """Window around the mask, and lengths of its runs row by row, background first."""
    (rows,), (columns,) = mask.any(1).nonzero(), mask.any(0).nonzero()
    top, left = rows[0], columns[0]
    height, width = rows[-1] + 1 - top, columns[-1] + 1 - left
    pixels = mask[top : top + height, left : left + width].ravel().astype(bool)
    # A pixel of background before the first, so that the first run is always one of background.
    changes = np.flatnonzero(np.diff(pixels, prepend=False))
    runs = np.diff(np.concatenate([[0], changes, [pixels.size]]))
    window = dict(left=left, top=top, width=width, height=height)
    return dict(rle=", ".join(map(str, runs))) | {k: str(v) for k, v in window.items()}
