# SPDX-License-Identifier: Apache-2.0
"""COCO annotation files: read, checked, stripped of masks, and written without half-files."""

from __future__ import annotations

import errno
import json
import math
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from mal_mmdet.progress import track

from .images import MAX_PIXELS, RAISE_LIMIT, leaves_folder, read_image
from .json_stream import JSONList, ListWriter, check_depth, stream_json, write_around

LARGEST = 1e150  # its square is still a number
NO_SYNC = (errno.EINVAL, errno.ENOTSUP)


def read_coco(path: str | Path) -> dict[str, Any]:
    """Reads a COCO annotation file and checks its frame.

    Raises:
        FileNotFoundError: No such file.
        ValueError: Not JSON, or not the structure of a COCO file; says what is missing.
    """
    return _check_frame(path, read_json(path))


def open_coco(ann_file: str | Path, detections: str | Path | None = None) -> dict[str, Any]:
    """:func:`read_coco` for files of any size, or for the boxes that a detector found.

    Annotations stay in the file: ``annotations`` is a :class:`JSONList`, which gives the same
    entries each time it is iterated.

    Args:
        ann_file: COCO file; beside ``detections`` only its images and categories count.
        detections: COCO results file, a list of ``image_id``, ``category_id``, ``bbox`` and
            ``score``.

    Raises:
        FileNotFoundError, ValueError: As :func:`read_coco`, or the results are no list.
    """
    coco = _check_frame(ann_file, _read(ann_file, lambda: stream_json(ann_file, "annotations")))
    if detections is None:
        return coco
    found = _read(detections, lambda: stream_json(detections))
    if not isinstance(found, JSONList):
        raise ValueError(
            f"{detections} is no COCO results file: expected a list of objects with image_id, "
            "category_id, bbox and score"
        )
    return {**coco, "annotations": found}


def _check_frame(path: str | Path, content: Any) -> dict[str, Any]:
    coco = _check_lists(path, content, ("images", "annotations", "categories"), "COCO's format")
    for key, needed in (("images", ("id",)), ("categories", ("id", "name"))):
        for i, entry in enumerate(coco[key]):
            for name in needed:
                if not isinstance(entry, dict) or not _is_name(entry.get(name)):
                    raise ValueError(
                        f"{key}[{i}] of {path} is {entry!r:.80} and has no {name!r} that is a "
                        "whole number of up to 64 bits or a text"
                    )
        if len({entry["id"] for entry in coco[key]}) != len(coco[key]):
            raise ValueError(f"ids of {key} in {path} are not unique")
    return coco


def read_json(path: str | Path) -> Any:
    """Reads JSON.

    Raises:
        FileNotFoundError: No such file.
        ValueError: Not JSON.
    """

    def load() -> Any:
        with open(path, encoding="utf-8-sig") as file:
            text = file.read()
        return check_depth(json.loads(text), text)

    return _read(path, load)


def _read(path: str | Path, load: Callable[[], Any]) -> Any:
    try:
        return load()
    except FileNotFoundError:
        raise FileNotFoundError(f"{path} does not exist") from None
    except IsADirectoryError:
        raise ValueError(f"{path} is a folder; expected a JSON file") from None
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not valid JSON: {error}") from None


def read_lists(path: str | Path, keys: tuple[str, ...], expected: str) -> dict[str, Any]:
    """Reads an annotation file, a JSON object that has a list under each of ``keys``.

    Args:
        path: The file.
        keys: What it has to have.
        expected: Name of the format, for the errors.

    Raises:
        FileNotFoundError: No such file.
        ValueError: Not JSON, or a list is missing.
    """
    return _check_lists(path, read_json(path), keys, expected)


def _check_lists(
    path: str | Path, content: Any, keys: tuple[str, ...], expected: str
) -> dict[str, Any]:
    for key in keys:
        if not isinstance(content, dict) or not isinstance(content.get(key), (list, JSONList)):
            raise ValueError(
                f"annotation file {path} has no list {key!r}; expected {expected}, an object "
                f"with the lists {', '.join(map(repr, keys))}"
            )
    return content


def image_file(image: dict[str, Any], path_parts: int | None = None) -> str:
    """File of an image, relative to the folder of the images.

    That is ``file_name``. LVIS v1 has none: there, as in mmdet, the last two parts of
    ``coco_url``, such as ``train2017/000000391895.jpg``.

    Args:
        image: The image's entry in the COCO file, sound in the eyes of :func:`find_problems`.
        path_parts: So many last parts of the name are used; all if not given.
    """
    if "file_name" not in image:
        return "/".join(PurePosixPath(image["coco_url"]).parts[-2:])
    if path_parts is None:
        return image["file_name"]
    return "/".join(PurePosixPath(image["file_name"]).parts[-path_parts:])


def read_image_of(image: dict[str, Any], img_dir: str | Path) -> np.ndarray:
    """The pixels of an image as :func:`read_image` reads them, of the size that its entry says.

    Args:
        image: An entry of ``coco['images']``.
        img_dir: Folder that the file's images are relative to.

    Raises:
        ValueError: It cannot be read, or has another size.
    """
    path = Path(img_dir) / image_file(image)
    pixels = read_image(path)
    if pixels.shape[:2] != (image["height"], image["width"]):
        raise ValueError(
            f"image {path} has {pixels.shape[1]}×{pixels.shape[0]} pixels, but the COCO file says "
            f"{image['width']}×{image['height']}"
        )
    return pixels


def find_problems(
    coco: dict[str, Any], scored: bool = False, allow_outside: bool = False
) -> dict[int, str]:
    """Finds the annotations that cannot be cropped.

    Args:
        coco: A file as :func:`read_coco` or :func:`open_coco` returns it.
        scored: Whether they are detections: they have a ``score``, and no ``id``.
        allow_outside: Whether images may lie outside their folder, see :func:`leaves_folder`.

    Returns:
        Position in ``coco['annotations']`` → what is wrong, in words.
    """
    return {
        i: problem for i, _, problem in check_annotations(coco, scored, allow_outside) if problem
    }


def refuse_problems(
    coco: dict[str, Any], name: str | Path, allow_outside: bool = False, boxes: bool = True
) -> None:
    """Refuses a file with an annotation that cannot be used.

    Args:
        coco: See :func:`find_problems`.
        name: Of the file, for the message.
        allow_outside: Likewise.
        boxes: Whether boxes have to be sound. If not, four numbers do.

    Raises:
        ValueError: There is one; names the first.
    """
    for i, problem in find_problems(coco, allow_outside=allow_outside).items():
        if boxes or not is_about_box(problem):
            raise ValueError(f"annotations[{i}] of {name}: {problem}")


def is_about_box(problem: str) -> bool:
    """Whether what :func:`find_problems` found is a box of numbers that no image can have."""
    return problem.startswith("bbox [")


def check_annotations(
    coco: dict[str, Any],
    scored: bool = False,
    allow_outside: bool = False,
    only_missing: bool = False,
) -> Iterator[tuple[int, Any, str | None]]:
    """Position, annotation and what is wrong with it, one after the other.

    Takes what :func:`find_problems` takes, and ``only_missing``: what has a mask then needs no box.
    """
    images = {image["id"]: image for image in coco["images"]}
    broken = find_broken_images(coco, allow_outside)
    categories = {category["id"] for category in coco["categories"]}
    seen: set = set()
    for i, ann in enumerate(coco["annotations"]):
        numbered = {**ann, "id": i} if scored and isinstance(ann, dict) else ann
        problem = _problem(numbered, images, broken, categories, seen, only_missing)
        if scored and not problem:
            problem = _detection_problem(ann)
        yield i, ann, problem


def find_broken_images(coco: dict[str, Any], allow_outside: bool = False) -> dict[int | str, str]:
    """Finds the images that cannot be used: id → what is wrong, in words."""
    problems = {}
    for image in coco["images"]:
        problem = image_problem(image)
        if not (problem or allow_outside) and leaves_folder(image_file(image)):
            problem = (
                f"its image {image_file(image)!r:.80} has to lie below the folder of the images; "
                "if another place is meant, --allow-outside, or the data set's allow_outside, "
                "allows it"
            )
        if problem:
            problems[image["id"]] = problem
    return problems


def _is_name(value: Any) -> bool:
    """Whether a value can be an id.

    Python's hashes of longer numbers can be made to collide, which takes hours in a small file.
    """
    if isinstance(value, int) and not isinstance(value, bool):
        return -(2**63) <= value < 2**64
    return isinstance(value, str)


def _problem(
    ann: Any, images: dict, broken: dict, categories: set, seen: set, only_missing: bool
) -> str | None:
    if not isinstance(ann, dict):
        return f"annotation is {ann!r:.40}, expected an object"
    keeps_mask = only_missing and has_mask(ann)
    for key in ("id", "image_id", "category_id") + (() if keeps_mask else ("bbox",)):
        if key not in ann:
            return f"has no {key!r}"
    for key in ("id", "image_id", "category_id"):
        if not _is_name(ann[key]):
            return f"its {key!r} is {ann[key]!r:.40}, expected a whole number of 64 bits or a text"
    if ann["id"] in seen:
        return f"id {ann['id']!r:.40} occurs more than once; ids must be unique"
    seen.add(ann["id"])
    image = images.get(ann["image_id"])
    if image is None:
        return f"its image {ann['image_id']!r:.40} is not in 'images'"
    if ann["category_id"] not in categories:
        return f"its category {ann['category_id']!r:.40} is not in 'categories'"
    if image["id"] in broken:
        return broken[image["id"]]
    if keeps_mask:
        return None
    return bbox_problem(ann["bbox"], image["width"], image["height"])


def bbox_problem(bbox: Any, width: int, height: int) -> str | None:
    """What is wrong with a COCO box in an image of ``width`` × ``height``; None if nothing is."""
    if not isinstance(bbox, list) or len(bbox) != 4 or not all(map(_is_number, bbox)):
        return f"bbox is {bbox!r:.60}, expected four numbers [x, y, width, height]"
    if not is_bbox(bbox):
        return f"bbox is {bbox!r:.80} and holds NaN or infinity, or a number as good as that"
    x, y, w, h = bbox
    if w <= 0 or h <= 0:
        return f"bbox {bbox} is empty: width and height must be positive"
    if x + w == x or y + h == y:
        return f"bbox {bbox} is empty: its width or height is lost beside x or y"
    size = f"{width}×{height} pixels"
    if x >= width or y >= height or x + w <= 0 or y + h <= 0:
        return f"bbox {bbox} lies outside its image of {size}"
    if w > 3 * width or h > 3 * height:
        return f"bbox {bbox} is more than three times as large as its image of {size}"
    if w * h > MAX_PIXELS:
        return f"bbox {bbox} has more than {MAX_PIXELS} pixels, most of them beyond its image"
    return None


def _detection_problem(ann: dict) -> str | None:
    if ann.get("iscrowd"):
        return "it has 'iscrowd', but what a detector finds is one object"
    score = ann.get("score")
    if not is_finite(score):
        return f"its 'score' is {score!r:.40}, expected a number"
    return None


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def is_bbox(value: Any) -> bool:
    """Whether a value from a JSON file is a list of four numbers."""
    return isinstance(value, list) and len(value) == 4 and all(map(is_finite, value))


def is_finite(value: Any) -> bool:
    """Whether a value from a JSON file is a number that a float can hold."""
    return _is_number(value) and -LARGEST < value < LARGEST


def image_problem(image: dict[str, Any]) -> str | None:
    """What is wrong with the entry of an image, in words; None if nothing is."""
    name = "coco_url" if "coco_url" in image and "file_name" not in image else "file_name"
    for key, kind, expected in (
        (name, str, "a text; an image needs a 'file_name', or a 'coco_url' in its place"),
        ("width", int, "a whole number of pixels"),
        ("height", int, "a whole number of pixels"),
    ):
        value = image.get(key)
        # An empty text and a size of nothing are not greater than the least of their kind.
        if isinstance(value, bool) or not isinstance(value, kind) or not value > kind():
            return f"{key!r} of its image {image['id']!r:.40} is {value!r:.40}, expected {expected}"
    if image["width"] * image["height"] > MAX_PIXELS:
        size = f"{image['width']}×{image['height']}"
        return f"its image {image['id']!r:.40} has {size:.40} pixels, {RAISE_LIMIT}"
    return None


def has_mask(ann: Any) -> bool:
    """Whether an annotation has a ``segmentation`` of any format, and not an empty one.

    Some tools write ``[[]]`` for none.
    """
    segmentation = ann.get("segmentation") if isinstance(ann, dict) else None
    return any(segmentation) if isinstance(segmentation, list) else bool(segmentation)


def strip_masks(coco: dict[str, Any]) -> dict[str, Any]:
    """The same file without masks, and with ``area`` of the box: all that MAL may see.

    Annotations without a usable ``bbox`` are kept as they are, less their masks; what is no object
    at all becomes null.
    """
    return {**coco, "annotations": [_strip_mask(ann) for ann in coco["annotations"]]}


def write_boxes_only(instances: str | Path, boxes: str | Path) -> None:
    """:func:`strip_masks` from file to file, an annotation at a time.

    Args:
        instances: COCO file.
        boxes: COCO file to write.

    Raises:
        FileNotFoundError: As :func:`read_coco`.
        ValueError: As :func:`read_coco`, or both are the same file.
    """
    refuse_input(boxes, instances)
    coco = open_coco(instances)

    def strip(out: ListWriter) -> None:
        for ann in track(coco["annotations"], "writing boxes", "boxes"):
            out.add(_strip_mask(ann))

    with replacing(boxes) as temporary, open(temporary, "w", encoding="utf-8") as file:
        write_around(file, coco, "annotations", strip)


def _strip_mask(ann: Any) -> dict[str, Any] | None:
    if not isinstance(ann, dict):
        return None
    ann = {k: v for k, v in ann.items() if k != "segmentation"}
    bbox = ann.get("bbox")
    if isinstance(bbox, list) and len(bbox) == 4 and all(map(is_finite, bbox[2:])):
        ann["area"] = bbox[2] * bbox[3]
    return ann


def without_nan(content: Any) -> Any:
    """The same structure with null in place of NaN and infinity, which JSON does not know."""
    if isinstance(content, dict):
        return {key: without_nan(value) for key, value in content.items()}
    if isinstance(content, list):
        return [without_nan(value) for value in content]
    return None if isinstance(content, float) and not math.isfinite(content) else content


def refuse_input(out: str | Path, *inputs: str | Path | None) -> None:
    """Sees to it that nobody's only masks, or boxes, are written over.

    Args:
        out: File to write.
        inputs: Files that are read for it.

    Raises:
        ValueError: It is one of them, or a folder.
    """
    if Path(out).is_dir():
        raise ValueError(f"{out} is a folder; expected the name of a file to write")
    for name in inputs:
        if name and Path(out).exists() and Path(name).exists() and Path(out).samefile(name):
            raise ValueError(
                f"{out} is also read, and what it holds would be lost: write to another file"
            )


@contextmanager
def replacing(path: str | Path, folder: str | Path | None = None) -> Iterator[str]:
    """Gives a temporary name to write to, and renames it to ``path`` if all went well.

    The folder of ``path`` is made if it is not there; after an error nothing is left behind, and
    after a kill a file whose name begins with a dot.

    Args:
        path: The file.
        folder: Where the temporary file lies, on the same file system; beside ``path`` if not
            given.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(dir=folder or path.parent, prefix=f".{path.name}.")
    os.close(descriptor)
    try:
        yield temporary
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(temporary, 0o666 & ~umask)  # mkstemp files are private, results are not
        sync(temporary)  # or a power cut could leave the new name with nothing in it
        os.replace(temporary, path)
        sync(path.parent)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def sync(path: str | Path) -> None:
    """Waits until a file, or the names in a folder, are on the disk.

    For folders not every file system of a network or in user space can; they do without.
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if not (Path(path).is_dir() and error.errno in NO_SYNC):
            raise
    finally:
        os.close(descriptor)


def write_json(path: str | Path, content: Any, indent: int | None = None) -> None:
    """Writes JSON, never half a file."""
    with replacing(path) as temporary, open(temporary, "w", encoding="utf-8") as file:
        json.dump(content, file, indent=indent)


def write_text(path: str | Path, text: str) -> None:
    """Writes UTF-8, never half a file."""
    with replacing(path) as temporary, open(temporary, "w", encoding="utf-8") as file:
        file.write(text)
