# SPDX-License-Identifier: Apache-2.0
"""What is written; tests/visualization/test_review_browser.py looks at it in a browser."""

import hashlib
import json
import tracemalloc

import cv2
import numpy as np
import pytest

from mal_mmdet.labeling import encode_mask, read_coco, write_json
from mal_mmdet.visualization import draw_thumbnail, review_page, write_review_page

WIDTH, HEIGHT, SIZE = 120, 100, 64
GREYS = {1: 200, 2: 90}  # image id → its grey


def square(rows=20):
    mask = np.zeros((HEIGHT, WIDTH), dtype=np.uint8)
    mask[30 : 30 + rows, 40:60] = 1
    return mask


def ann(ann_id, image_id=1, quality=None, category_id=5, bbox=(40, 30, 20, 20), **more):
    entry = dict(id=ann_id, image_id=image_id, category_id=category_id, bbox=list(bbox))
    entry |= dict(segmentation=encode_mask(square()))
    return entry | ({} if quality is None else dict(mask_quality=quality)) | more


@pytest.fixture
def files(tmp_path):
    """Writes a label file and its images; returns the arguments of the page."""

    def write(*anns):
        images = []
        for image_id, grey in GREYS.items():
            name = f"{image_id}.png"
            cv2.imwrite(str(tmp_path / name), np.full((HEIGHT, WIDTH, 3), grey, dtype=np.uint8))
            images.append(dict(id=image_id, file_name=name, width=WIDTH, height=HEIGHT))
        categories = [dict(id=5, name="five"), dict(id=3, name="three")]
        coco = dict(images=images, annotations=list(anns), categories=categories)
        write_json(tmp_path / "labels.json", coco)
        return tmp_path / "labels.json", tmp_path, tmp_path / "page"

    return write


def read_data(page):
    text = (page / "data.js").read_text(encoding="ascii")
    return json.loads(text.removeprefix("window.REVIEW = ").removesuffix(";\n"))


def test_columns_are_sorted_by_quality(files):
    args = files(
        ann("a", quality=0.9),
        ann(2, quality=0.1, image_id=2, category_id=3),
        ann(3, iscrowd=1, quality=0.0),
        ann(4, bbox=(10, 10, 32, 32)),  # without a quality, a box on COCO's limit
        ann(5, quality=0.123456, bbox=(10, 10, 32, 33)),
        ann(6, quality=0.1, bbox=(0, 0, 97, 96)),
    )
    assert write_review_page(*args, size=SIZE) == 5
    data = read_data(args[2])
    digest = hashlib.sha256(args[0].read_bytes()).hexdigest()
    assert data["labels"] == dict(name="labels.json", sha256=digest)
    assert data["categories"] == ["five", "three"] and data["images"] == ["1.png", "2.png"]
    assert data["boxes"] == dict(
        id=[2, 6, 5, "a", 4],
        place=[1, 5, 4, 0, 3],
        image=[1, 0, 0, 0, 0],
        category=[1, 0, 0, 0, 0],
        size=[0, 2, 1, 0, 0],
        quality=[0.1, 0.1, 0.1235, 0.9, None],
        iou=None,
    )


def test_thumbnails_lie_in_that_order_and_images_are_read_once(files, monkeypatch):
    number = 150  # two sheets and a piece, images in turn
    rng = np.random.default_rng(0)
    qualities = rng.permutation(number) / number
    args = files(*(ann(i, image_id=1 + i % 2, quality=q) for i, q in enumerate(qualities)))
    read = []
    read_image = review_page.read_image_of
    monkeypatch.setattr(
        review_page,
        "read_image_of",
        lambda image, folder: read.append(image["file_name"]) or read_image(image, folder),
    )
    write_review_page(*args, size=SIZE)
    assert sorted(read) == ["1.png", "2.png"]
    sheets = sorted((args[2] / "sprites").iterdir())
    assert [path.name for path in sheets] == [f"{i:05d}.jpg" for i in range(3)]
    side = 8 * SIZE
    for slot, i in enumerate(np.argsort(qualities)):
        sheet = cv2.imread(str(sheets[slot // 64]))
        assert sheet.shape == (side, side, 3)
        top, left = (slot % 64) // 8 * SIZE, slot % 8 * SIZE
        grey = sheet[top + 3, left + 3]
        assert abs(grey.astype(int) - GREYS[1 + i % 2]).max() < 8, slot
    empty = cv2.imread(str(sheets[2]))[4 * SIZE :]
    assert empty.max() < 8


def test_a_thumbnail_shows_image_box_and_outline():
    """At 2 px a pixel of the image; what is right of the image is dark."""
    image = np.full((HEIGHT, 50, 3), 200, dtype=np.uint8)
    mask = np.zeros((HEIGHT, 50), dtype=np.uint8)
    mask[40:50, 35:45] = 1
    thumb = draw_thumbnail(image, [30, 30, 20, 40], mask, 112).astype(int)
    # The window is 56 px around (40, 50): columns 12 to 68, rows 22 to 78.
    assert (thumb[4, :70] == 200).all()
    assert (thumb[4, 84:] == review_page.OUTSIDE).all()
    green, orange = (60, 220, 60), (0, 140, 255)  # BGR
    for row, column in ((16, 50), (95, 50), (50, 36)):
        assert tuple(thumb[row, column]) == green
    distance = abs(thumb - orange).max(-1)
    rows, columns = (distance < 30).nonzero()
    assert {rows.min(), columns.min()} == {36, 46} and {rows.max(), columns.max()} == {55, 65}
    inside = thumb[42:50, 52:60]
    assert (inside == 200).all()


def test_a_thumbnail_of_a_long_box_takes_no_more_memory_than_its_image():
    image = np.full((60, 16000, 3), 200, dtype=np.uint8)
    tracemalloc.start()
    thumb = draw_thumbnail(image, [0, 10, 16000, 40], np.ones((60, 16000), np.uint8), 64)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 3 * image.nbytes
    assert (thumb[:20] == review_page.OUTSIDE).all() and (thumb[45:] == review_page.OUTSIDE).all()
    assert (thumb[32] != review_page.OUTSIDE).any(1).sum() > 40


def test_iou_beside_quality(files, tmp_path):
    args = files(ann(1, quality=0.2), ann(2, quality=0.1), ann(3, quality=0.3), ann(4, quality=0.4))
    truth = read_coco(args[0])
    truth["annotations"] = [
        ann(1, segmentation=encode_mask(square(10))),
        ann(2),
        ann(3, segmentation=[]),
        ann(9),
    ]
    write_json(tmp_path / "truth.json", truth)
    write_review_page(*args, truth_file=tmp_path / "truth.json", size=SIZE)
    assert read_data(args[2])["boxes"]["iou"] == [1, 0.5, None, None]  # of 2, 1, 3, 4

    truth["annotations"] = [ann(9)]
    write_json(tmp_path / "truth.json", truth)
    with pytest.raises(ValueError, match="no mask for any annotation of the label file"):
        write_review_page(*args[:2], tmp_path / "other", truth_file=tmp_path / "truth.json")
    truth["annotations"] = [ann(1, image_id=2)]
    write_json(tmp_path / "truth.json", truth)
    with pytest.raises(ValueError, match=r"annotation 1 is on .* in the label file, but on .*json"):
        write_review_page(*args[:2], tmp_path / "other", truth_file=tmp_path / "truth.json")


def test_what_is_there_is_not_overwritten_by_accident(files):
    args = files(ann(1, quality=0.2))
    page = args[2]
    page.mkdir()
    (page / "data.js").touch()
    with pytest.raises(FileExistsError, match="exists and is no review page"):
        write_review_page(*args, overwrite=True)
    (page / "data.js").unlink()  # an empty folder is as good as none
    write_review_page(*args, size=SIZE)
    with pytest.raises(FileExistsError, match="is a review page already"):
        write_review_page(*args, size=SIZE)
    (page / "data.js").write_text("old")
    (page / "labels.decisions.json").touch()
    with pytest.raises(FileExistsError, match=r"holds labels\.decisions\.json, which is not part"):
        write_review_page(*args, size=SIZE, overwrite=True)
    (page / "labels.decisions.json").unlink()
    write_review_page(*args, size=SIZE, overwrite=True)
    assert read_data(page)["boxes"]["id"] == [1]
    assert not list(page.parent.glob(".page*"))


@pytest.mark.parametrize(
    "change, message",
    [
        (dict(mask_quality="good"), "mask_quality of annotation 1 is 'good', expected a number"),
        (dict(mask_quality=1.5), r"is 1\.5, expected a number from 0 to 1"),
        (dict(segmentation=None), r"annotations\[0\] \(id 1\): expected a mask"),
        (dict(bbox=[0, 0, 0, 5]), r"annotations\[0\]: bbox .* is empty"),
        (dict(id=2**53), "annotation id 9007199254740992 is too large"),
        (dict(iscrowd=1), "no annotation to look at"),
    ],
)
def test_bad_annotations(files, change, message):
    args = files(ann(1) | change)
    with pytest.raises(ValueError, match=message):
        write_review_page(*args)
    assert not args[2].exists()


def test_bad_images_leave_nothing_behind(files, tmp_path):
    args = files(ann(1))
    before = {path.name for path in tmp_path.iterdir()}
    cv2.imwrite(str(tmp_path / "1.png"), np.zeros((HEIGHT, 5, 3), dtype=np.uint8))
    with pytest.raises(ValueError, match="has 5×100 pixels, but the COCO file says 120×100"):
        write_review_page(*args)
    (tmp_path / "1.png").write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"1\.png cannot be read"):
        write_review_page(*args)
    assert {path.name for path in tmp_path.iterdir()} == before
