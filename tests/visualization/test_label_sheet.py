# SPDX-License-Identifier: Apache-2.0
import json

import numpy as np
import pytest
from PIL import Image

from mal_mmdet.labeling import encode_mask, write_json
from mal_mmdet.visualization import draw_label_sheet, label_sheet

SIDE = 24
# Share of the human mask's rows that the prediction has right: the IoU of boxes 1 to 4.
ROWS = {1: 12, 2: 16, 3: 4, 4: 8}


def square(rows):
    mask = np.zeros((SIDE, SIDE), dtype=bool)
    mask[4 : 4 + rows, 4:20] = True
    return encode_mask(mask)


@pytest.fixture
def files(tmp_path):
    def coco(masks):
        template = dict(image_id=1, category_id=1, bbox=[4, 4, 16, 16])
        annotations = [dict(template, id=i, segmentation=mask) for i, mask in masks.items()]
        return dict(
            images=[dict(id=1, file_name="a.png", width=SIDE, height=SIDE)],
            annotations=annotations,
            categories=[dict(id=1, name="a")],
        )

    truth = coco({**{i: square(16) for i in ROWS}, 8: square(16), 9: square(16)})
    truth["annotations"][-1]["iscrowd"] = 1
    write_json(tmp_path / "truth.json", truth)
    write_json(tmp_path / "pred.json", coco({i: square(rows) for i, rows in ROWS.items()}))
    Image.new("RGB", (SIDE, SIDE), (90, 90, 90)).save(tmp_path / "a.png")
    return tmp_path / "pred.json", tmp_path / "truth.json", tmp_path, tmp_path / "sheet.png"


@pytest.fixture
def texts(monkeypatch):
    """The IoUs that were written on the sheet, in its order."""
    written = []
    draw = label_sheet.draw_panel

    def spy(*args, text="", **kwargs):
        written.append(text)
        return draw(*args, text=text, **kwargs)

    monkeypatch.setattr(label_sheet, "draw_panel", spy)
    return lambda: [text for text in written if text]


@pytest.mark.parametrize(
    "order, expected",
    [("best", ["1.00", "0.75", "0.50"]), ("worst", ["0.25", "0.50", "0.75"])],
)
def test_order_by_iou(files, texts, order, expected):
    draw_label_sheet(*files, order=order, number=3, columns=2, size=32)
    assert texts() == expected
    assert Image.open(files[-1]).size == (2 * (3 * 32 + 8), 2 * (32 + 4))


def test_random_is_in_the_files_order(files, texts):
    draw_label_sheet(*files, number=10)
    assert texts() == [f"{rows / 16:.2f}" for rows in ROWS.values()]


def test_masks_are_where_they_belong(files):
    """Orange over the predicted rows only, blue over the human mask's."""
    draw_label_sheet(*files, order="worst", number=1, columns=1, size=66)
    sheet = np.asarray(Image.open(files[-1])).astype(int)[2:-2, 4:-4]
    _, orange, blue = (sheet[:, i * 66 : (i + 1) * 66] for i in range(3))
    # The crop is the box with 0.3 more on each side, 3 px a pixel of the image from (1, 1) on.
    top, bottom, column = (5 - 1) * 3, (15 - 1) * 3, (17 - 1) * 3
    assert orange[top, column, 0] > 150 and orange[bottom, column, 0] == 90
    assert blue[top, column, 2] > 150 and blue[bottom, column, 2] > 150
    assert blue[1, column, 2] == 90


def test_photographs_are_drawn_as_they_were_held(files):
    """By EXIF the right half of what is stored, which is red, is the lower half of the image."""
    pixels = np.zeros((SIDE, SIDE, 3), dtype=np.uint8)
    pixels[:, SIDE // 2 :] = 255, 0, 0
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(pixels).save(files[2] / "a.png", exif=exif)
    draw_label_sheet(*files, number=1, columns=1, size=66)
    panel = np.asarray(Image.open(files[-1])).astype(int)[2:-2, 4:-4][:, 66:132]
    assert panel[-4:, :, 0].min() > 150 and panel[14:18, :4, 0].max() < 100


def test_masks_fit_the_pixels_of_the_image(files):
    """A square that is white in the image is covered by its mask to the last pixel."""
    pixels = np.zeros((SIDE, SIDE, 3), dtype=np.uint8)
    pixels[4:20, 4:20] = 255
    Image.fromarray(pixels).save(files[2] / "a.png")
    draw_label_sheet(files[1], *files[1:], number=1, columns=1, size=22 * 4)
    panel = np.asarray(Image.open(files[-1])).astype(int)[2:-2, 4:-4][:, 2 * 88 : 3 * 88]
    white, grey = (panel.min(2) > 240), panel.max(2) - panel.min(2) < 30
    assert not white.any() and grey[:10].all() and grey[:, :10].all()


def test_bad_input(files):
    with pytest.raises(ValueError, match=r"a\.png is also read"):
        draw_label_sheet(*files[:3], files[2] / "a.png")
    with pytest.raises(ValueError, match="order is 'middle', but must be one of"):
        draw_label_sheet(*files, order="middle")
    with pytest.raises(ValueError, match="number is 0 and size 128, expected at least 1 of both"):
        draw_label_sheet(*files, number=0)
    for ending in ("foo", "psd"):  # which Pillow only reads
        with pytest.raises(ValueError, match=rf"sheet\.{ending} is no picture"):
            draw_label_sheet(*files[:3], files[2] / f"sheet.{ending}")
    pred, truth, *rest = files
    write_json(pred, dict(images=[], annotations=[], categories=[]))
    with pytest.raises(ValueError, match="no annotation has a mask in both"):
        draw_label_sheet(pred, truth, *rest)


def test_images_outside_their_folder_where_they_are_allowed(files):
    truth = json.loads(files[1].read_text())
    truth["images"][0]["file_name"] = "../a.png"
    write_json(files[1], truth)
    (files[2] / "images").mkdir()
    draw_label_sheet(files[1], files[1], files[2] / "images", files[-1], allow_outside=True)
    assert files[-1].exists()


@pytest.mark.parametrize(
    "change, words",
    [
        (dict(height=2 * SIDE), r"a\.png has 24×24 pixels, but the COCO file says 24×48"),
        (dict(file_name="../a.png"), r"annotations\[0\] of .*'../a.png' has to lie .*--allow-out"),
    ],
)
def test_images_that_do_not_belong_to_the_boxes(files, change, words):
    other = files[1].with_name("other.json")
    truth = json.loads(files[1].read_text())
    truth["images"][0].update(change)
    shape = truth["images"][0]["height"], SIDE
    for ann in truth["annotations"]:
        ann["segmentation"] = encode_mask(np.ones(shape, dtype=bool))
    write_json(other, truth)
    with pytest.raises(ValueError, match=words):
        draw_label_sheet(other, other, *files[2:])
