# SPDX-License-Identifier: Apache-2.0
"""A page to look through the masks of a label file in a browser, worst first."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from numbers import Real
from pathlib import Path
from typing import Any

import cv2
import mmcv
import numpy as np

from mal_mmdet.evaluation.mask_iou import check_pairs, paired_iou
from mal_mmdet.labeling import (
    check_masks,
    file_sha256,
    has_mask,
    image_file,
    read_coco,
    read_image_of,
    refuse_problems,
    segmentation_to_mask,
)
from mal_mmdet.progress import track
from mal_mmdet.structures import AREA_LIMITS, bbox_to_crop, expand_bbox

from .panels import GREEN, ORANGE

ASSETS = Path(__file__).parent / "review"
SPRITES, DATA = "sprites", "data.js"
GRID = 8  # thumbnails along each side of a sprite sheet
MARGIN = 0.4  # of what a thumbnail shows around its box, as a share of the box's longer side
OUTSIDE = 24  # grey value of what lies outside the image
LARGEST_ID = 2**53 - 1  # of the whole numbers that JavaScript can tell apart


def write_review_page(
    label_file: str | Path,
    img_dir: str | Path,
    out_dir: str | Path,
    truth_file: str | Path | None = None,
    size: int = 128,
    overwrite: bool = False,
    allow_outside: bool = False,
) -> int:
    """Writes a folder whose ``index.html`` shows every box of a label file with its mask.

    The page needs no server and asks for nothing outside its folder. Thumbnails lie on sprite
    sheets in the order of their quality, in which they are first looked at; they are made image
    by image, so that each image is read once, and wait in a temporary file meanwhile.

    Args:
        label_file: COCO file with masks, and ``mask_quality`` where that is known. Crowds are
            left out.
        img_dir: Folder that the file's images are relative to, see :func:`image_file`.
        out_dir: Folder to write; it appears under this name when it is whole.
        truth_file: COCO file with human masks for annotations of the same ids, for their IoU.
        size: Side of a thumbnail in pixels.
        overwrite: Whether a review page that is there already is replaced.
        allow_outside: Whether images may lie outside ``img_dir``, see :func:`leaves_folder`.

    Returns:
        Number of boxes on the page.

    Raises:
        FileExistsError: ``out_dir`` exists and may not be replaced.
        FileNotFoundError: No such label file.
        ValueError: A box, mask, quality or id cannot be used, an image cannot be read, or the
            human masks are of other boxes.
    """
    out_dir = Path(out_dir)
    _check_target(out_dir, overwrite)
    coco = read_coco(label_file)
    check_masks(coco, allow_outside)
    images = {image["id"]: image for image in coco["images"]}
    # The worst first, those without a quality last.
    places, anns = [], []
    for place, ann in sorted(enumerate(coco["annotations"]), key=lambda p: _quality(p[1], 2.0)):
        if not ann.get("iscrowd"):
            _check_id(ann["id"])
            places.append(place)
            anns.append(ann)
    if not anns:
        raise ValueError(f"{label_file} has no annotation to look at that is not a crowd")
    labels = dict(name=Path(label_file).name, sha256=file_sha256(label_file))
    image_index = {image_id: i for i, image_id in enumerate(images)}
    category_index = {category["id"]: i for i, category in enumerate(coco["categories"])}
    data = dict(
        labels=labels,
        thumbs=dict(size=size, grid=GRID),
        categories=[category["name"] for category in coco["categories"]],
        images=[image_file(image) for image in images.values()],
        boxes=dict(
            id=[ann["id"] for ann in anns],
            place=places,
            image=[image_index[ann["image_id"]] for ann in anns],
            category=[category_index[ann["category_id"]] for ann in anns],
            size=np.searchsorted(
                AREA_LIMITS, [ann["bbox"][2] * ann["bbox"][3] for ann in anns]
            ).tolist(),
            quality=[_rounded(_quality(ann, None)) for ann in anns],
            iou=_ious(coco | dict(annotations=anns), truth_file) if truth_file else None,
        ),
    )
    with _replacing_folder(out_dir) as folder:
        write_page(folder, data)
        _write_sprites(folder / SPRITES, anns, images, Path(img_dir), size)
    return len(anns)


def write_page(folder: Path, data: dict[str, Any]) -> None:
    """Writes all of a page but the sprite sheets.

    Args:
        folder: An empty folder.
        data: What ``review.js`` finds as ``window.REVIEW``. Its ``boxes`` are columns of the same
            length in the order of the thumbnails, ``quality`` ascending.
    """
    shutil.copytree(ASSETS, folder, dirs_exist_ok=True)
    # A script, as browsers let no page that is a file read another file.
    text = json.dumps(data, separators=(",", ":"), allow_nan=False)
    (folder / DATA).write_text(f"window.REVIEW = {text};\n", encoding="ascii")


def draw_thumbnail(image: np.ndarray, bbox: list[float], mask: np.ndarray, size: int) -> np.ndarray:
    """A square piece of an image around a box, with the box and the outline of a mask.

    Args:
        image: uint8 BGR, shape (H, W, 3).
        bbox: x, y, width, height in the image frame.
        mask: uint8, 0 or 1, shape (H, W).
        size: Side S of the thumbnail in pixels.

    Returns:
        uint8 BGR, shape (S, S, 3).
    """
    x, y, w, h = bbox
    corners = np.array([x, y, x + w, y + h])
    window = expand_bbox(corners, (1 + MARGIN) * max(w, h) / np.array([w, h, w, h]) - 1)
    thumb = _resized(image, window, size, "bicubic", OUTSIDE)
    cut = _resized(mask * np.uint8(255), window, size, "bilinear", 0)
    x0, y0, x1, y1 = bbox_to_crop(corners, window, size).round().astype(int).tolist()
    cv2.rectangle(thumb, (x0, y0), (x1 - 1, y1 - 1), GREEN[::-1])
    contours, _ = cv2.findContours(
        (cut > 127).astype(np.uint8), cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE
    )
    # Darker beside the outline, which then shows on any colour and still hides nothing.
    shade = cv2.drawContours(thumb.copy(), contours, -1, (0, 0, 0), 3, cv2.LINE_AA)
    thumb = cv2.addWeighted(shade, 0.5, thumb, 0.5, 0)
    return cv2.drawContours(thumb, contours, -1, ORANGE[::-1], 1, cv2.LINE_AA)


def _resized(
    image: np.ndarray, window: np.ndarray, size: int, interpolation: str, outside: int
) -> np.ndarray:
    """A window of an image, resized to S × S. Of a long box most of it may lie outside."""
    height, width = image.shape[:2]
    inside = window.clip(0, [width, height, width, height])
    left, top, right, bottom = bbox_to_crop(inside, window, size).round().astype(int).tolist()
    right, bottom = max(right, left + 1), max(bottom, top + 1)
    piece = mmcv.imcrop(image, inside - (0, 0, 1, 1))
    thumb = np.full((size, size, *image.shape[2:]), outside, np.uint8)
    thumb[top:bottom, left:right] = mmcv.imresize(
        piece, (right - left, bottom - top), interpolation=interpolation, backend="pillow"
    )
    return thumb


def _write_sprites(
    folder: Path, anns: list[dict], images: dict[Any, dict], img_dir: Path, size: int
) -> None:
    """Thumbnail ``i`` of ``anns`` is the one at ``i % GRID²``, row by row, on sheet ``i // GRID²``.

    Memory does not grow with the number of boxes.
    """
    folder.mkdir()
    by_image: dict[Any, list[int]] = {}
    for i, ann in enumerate(anns):
        by_image.setdefault(ann["image_id"], []).append(i)
    where = np.zeros((len(anns), 2), dtype=np.int64)  # offset and length in the waiting file
    with tempfile.TemporaryFile(dir=folder) as waiting:
        for image_id, members in track(by_image.items(), "drawing thumbnails", "images"):
            image = read_image_of(images[image_id], img_dir)
            for i in members:
                mask = segmentation_to_mask(anns[i]["segmentation"], *image.shape[:2])
                thumb = draw_thumbnail(image, anns[i]["bbox"], mask, size)
                jpeg = _jpeg(thumb, quality=95)
                where[i] = waiting.tell(), len(jpeg)
                waiting.write(jpeg)
        sheets = range(0, len(anns), GRID**2)
        for number, first in enumerate(track(sheets, "joining thumbnails", "sheets")):
            sheet = np.zeros((GRID, size, GRID, size, 3), dtype=np.uint8)
            for i, (offset, length) in enumerate(where[first : first + GRID**2].tolist()):
                waiting.seek(offset)
                jpeg = np.frombuffer(waiting.read(length), dtype=np.uint8)
                sheet[i // GRID, :, i % GRID] = cv2.imdecode(jpeg, cv2.IMREAD_COLOR)
            sheet = sheet.reshape(GRID * size, GRID * size, 3)
            (folder / f"{number:05d}.jpg").write_bytes(_jpeg(sheet, quality=80))


def _jpeg(image: np.ndarray, quality: int) -> bytes:
    # Without subsampling, or thin coloured lines would fade.
    sampling = [cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444]
    options = [cv2.IMWRITE_JPEG_QUALITY, quality, *sampling]
    return cv2.imencode(".jpg", image, options)[1].tobytes()


def _quality(ann: dict, otherwise: float | None) -> float | None:
    quality = ann.get("mask_quality")
    if quality is None:
        return otherwise
    if isinstance(quality, bool) or not isinstance(quality, Real) or not 0 <= quality <= 1:
        raise ValueError(
            f"mask_quality of annotation {ann['id']!r} is {quality!r}, expected a number from 0 to "
            "1, or none at all"
        )
    return quality


def _check_id(ann_id: int | str) -> None:
    if isinstance(ann_id, int) and abs(ann_id) > LARGEST_ID:
        raise ValueError(
            f"annotation id {ann_id} is too large: browsers know whole numbers up to {LARGEST_ID}; "
            "number the annotations anew, or make their ids texts"
        )


def _ious(labels: dict[str, Any], truth_file: str | Path) -> list[float | None]:
    """IoU of each mask with the human one, None where there is none."""
    coco, anns = read_coco(truth_file), labels["annotations"]
    refuse_problems(coco, truth_file, allow_outside=True, boxes=False)
    check_pairs(labels, coco, "the label file", truth_file)
    images = {image["id"]: image for image in labels["images"]}
    truth = {
        ann["id"]: ann for ann in coco["annotations"] if has_mask(ann) and not ann.get("iscrowd")
    }
    ious: list[float | None] = []
    for ann in track(anns, "comparing masks", "masks"):
        if ann["id"] not in truth:
            ious.append(None)
            continue
        iou = paired_iou(ann["segmentation"], truth[ann["id"]], images[ann["image_id"]])
        ious.append(round(iou, 4))
    if not truth.keys() & {ann["id"] for ann in anns}:
        raise ValueError(
            f"{truth_file} has no mask for any annotation of the label file: ids must match"
        )
    return ious


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)


def _check_target(out_dir: Path, overwrite: bool) -> None:
    """Whether the folder may be written; what was not made here is never removed."""
    if not out_dir.exists():
        return
    names = {path.name for path in out_dir.iterdir()} if out_dir.is_dir() else set()
    if out_dir.is_dir() and not names:
        return
    own = {path.name for path in ASSETS.iterdir()} | {SPRITES, DATA}
    if not names >= own:
        raise FileExistsError(f"{out_dir} exists and is no review page; choose another folder")
    if names > own:
        raise FileExistsError(
            f"{out_dir} holds {', '.join(sorted(names - own))}, which is not part of the review "
            "page; move that away first"
        )
    if not overwrite:
        raise FileExistsError(
            f"{out_dir} is a review page already; choose another folder, or --overwrite it"
        )


@contextmanager
def _replacing_folder(path: Path) -> Iterator[Path]:
    """Gives a temporary folder to fill, and renames it to ``path`` if all went well.

    After an error nothing is left behind, and after a kill a folder whose name begins with a dot.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as temporary:
        new, old = Path(temporary) / "new", Path(temporary) / "old"
        new.mkdir()
        yield new
        if path.exists():
            os.rename(path, old)
        os.rename(new, path)
