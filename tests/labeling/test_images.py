# SPDX-License-Identifier: Apache-2.0
"""Images of all kinds through labeling, and files that are none."""

from __future__ import annotations

import io
import json
import re
import struct
import subprocess
import sys
import zlib

import cv2
import numpy as np
import pytest
from PIL import Image, ImageOps, PngImagePlugin

from mal_mmdet.datasets import BoxCropDataset, ImageBoxDataset
from mal_mmdet.labeling import (
    bbox_problem,
    image_size,
    leaves_folder,
    open_image,
    read_image,
    report_path,
)
from mal_mmdet.labeling.images import LIMIT, MAX_PIXELS, ORIENTATION
from tests.conftest import ROOT, tiny_config
from tests.hostile import Labeler


@pytest.fixture(scope="module")
def labeler(demo, tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    return Labeler(folder, tiny_config(demo, folder, **{"model.thresholds": 0.5}))


def photo(mode="RGB", size=(40, 30)) -> Image.Image:
    """Colours that change slowly and differently along both axes."""
    x, y = np.meshgrid(np.linspace(0, 1, size[0]), np.linspace(0, 1, size[1]))
    pixels = np.stack([200 * x, 150 * y, 255 * (1 - x) * y], 2).astype(np.uint8)
    return Image.fromarray(pixels).convert(mode)


def encoded(image: Image.Image, ending: str, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, ending, **options)
    return file.getvalue()


def turned(orientation: int) -> bytes:
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    return encoded(photo(), "jpeg", exif=exif, quality=95)


def deep_png() -> bytes:
    pixels = np.arange(30 * 40 * 3, dtype=np.uint16).reshape(30, 40, 3) * 18
    return cv2.imencode(".png", pixels)[1].tobytes()


def bomb(side: int) -> bytes:
    """A PNG of a few hundred bytes that says it has side² pixels."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        checksum = zlib.crc32(kind + content)
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", checksum)

    header = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    parts = ((b"IHDR", header), (b"IDAT", zlib.compress(bytes(1000))), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts)


def label(labeler, content: bytes, size, name="x.png", bbox=(0, 0, 5, 5)) -> str | int:
    """Number of masks of a file with one box in one image, or what is wrong with it."""
    (labeler.images / name).write_bytes(content)
    image = dict(id=1, file_name=name, width=size[0], height=size[1])
    ann = dict(id=1, image_id=1, category_id=1, bbox=bbox)
    categories = [dict(id=1, name="cat")]
    coco = dict(images=[image], annotations=[ann], categories=categories)
    masks = labeler.label(json.dumps(coco).encode())
    failed = json.loads(report_path(labeler.out).read_text())["failed"]
    return failed[0]["problem"] if failed else masks


KINDS = dict(
    grey=encoded(photo("L"), "jpeg"),
    cmyk=encoded(photo("CMYK"), "jpeg"),
    progressive=encoded(photo(), "jpeg", progressive=True),
    palette=encoded(photo("P"), "png"),
    bits=encoded(photo("1"), "png"),
    grey_alpha=encoded(photo("LA"), "png"),
    alpha=encoded(photo("RGBA"), "png"),
    deep=deep_png(),
    gif=encoded(photo(), "gif"),
    bmp=encoded(photo(), "bmp"),
    tiff=encoded(photo(), "tiff"),
    webp=encoded(photo(), "webp"),
)


@pytest.mark.parametrize("content", KINDS.values(), ids=KINDS)
def test_every_kind_is_labeled_whatever_its_ending(labeler, content):
    if content.startswith(b"GIF") and not cv2.haveImageWriter(".gif"):
        pytest.skip(f"OpenCV {cv2.__version__} reads no GIF")
    assert label(labeler, content, (40, 30), "x.jpg") == 1


@pytest.mark.parametrize("size, bbox", [((1, 1), (0, 0, 1, 1)), ((30000, 2), (29000, 0, 999, 2))])
def test_the_smallest_and_the_widest(labeler, size, bbox):
    assert label(labeler, encoded(photo(size=size), "png"), size, bbox=bbox) == 1


@pytest.mark.parametrize(
    "content, words",
    [
        (b"", "cannot identify image file"),
        (b"no image", "cannot identify image file"),
        (encoded(photo(), "png")[:-30], "failed to load image"),
        (encoded(photo(), "jpeg")[:-30], "failed to load image"),
        (bomb(20_000), f"has more than {MAX_PIXELS}.*set the environment variable {LIMIT}"),
        (bomb(2_000_000_000), "x.png has more than"),
        (encoded(photo(size=(41, 30)), "png"), "has 41×30 pixels, but .* says 40×30"),
    ],
)
def test_what_cannot_be_used_is_reported(labeler, content, words):
    problem = label(labeler, content, (40, 30))
    assert isinstance(problem, str) and re.search(words, problem), problem


def test_an_annotation_file_cannot_ask_for_too_many_pixels(labeler):
    problem = label(labeler, bomb(20_000), (20_000, 20_000))
    assert f"has 20000×20000 pixels, more than {MAX_PIXELS}" in problem


@pytest.mark.parametrize("orientation", range(1, 9))
def test_boxes_are_in_the_frame_that_exif_turns_an_image_to(labeler, tmp_path, orientation):
    content = turned(orientation)
    shown = ImageOps.exif_transpose(Image.open(io.BytesIO(content)))
    assert shown.size == ((30, 40) if orientation > 4 else (40, 30))
    assert label(labeler, content, shown.size, "x.jpg") == 1
    path = labeler.images / "x.jpg"
    assert image_size(path) == shown.size
    found = read_image(path)[..., ::-1].astype(int)
    assert np.abs(found - np.asarray(shown)).mean() < 2
    problem = label(labeler, content, shown.size[::-1], "x.jpg")
    assert "the boxes would not fit. It is loaded the way that its EXIF" in problem


@pytest.mark.parametrize("function", [open_image, image_size])
def test_no_pipe_and_no_device_is_opened(labeler, function):
    for name in ("pipe.png", "zero.png", "sub"):
        with pytest.raises(OSError, match=f"{name} is no file"):
            function(labeler.images / name)


def test_read_image_says_what_is_wrong(labeler):
    for name in ("missing.png", "cut.jpg", "empty.png", "pipe.png"):
        with pytest.raises(ValueError, match=rf"image .*{name} cannot be read"):
            read_image(labeler.images / name)


def test_images_that_are_in_memory_have_no_file_to_look_at():
    image = dict(img_path="s3://bucket/x.png", instances=[dict(bbox=[0, 0, 4, 4], bbox_label=0)])
    pixels = np.zeros((8, 8, 3), np.uint8)
    source = ImageBoxDataset([image], lambda entry: dict(entry, img=pixels))
    dataset = BoxCropDataset(dict(type=lambda: source), [lambda results: results["img"].shape])
    assert dataset[0] == (8, 8, 3)


@pytest.mark.parametrize(
    "name, leaves",
    [
        ("a.png", False),
        ("a/b c/ü.png", False),
        ("a..b/..c.png", False),
        ("", False),
        ("/a.png", True),
        ("../a.png", True),
        ("a/../b.png", True),  # a may be a link
        ("s3://bucket/a.png", True),
    ],
)
def test_leaves_folder(name, leaves):
    assert leaves_folder(name) == leaves


def test_the_limit_can_be_raised():
    code = "import runpy, sys; print(runpy.run_path(sys.argv[1])['MAX_PIXELS'])"
    command = [sys.executable, "-c", code, str(ROOT / "mal_mmdet/labeling/images.py")]
    env = {LIMIT: "1000000000"}
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=True)
    assert int(done.stdout) == 1_000_000_000


def test_broken_exif_turns_nothing(labeler):
    content = turned(6)
    place = content.index(b"Exif\0\0") + 6
    for length in (8, 20):
        path = labeler.images / "x.jpg"
        path.write_bytes(content[:place] + b"\xff" * length + content[place + length :])
        assert image_size(path) == (40, 30) == read_image(path).shape[1::-1]


@pytest.mark.parametrize("kind, turned_to", [("png", (30, 40)), ("webp", (40, 30)), ("tiff", None)])
def test_the_size_of_formats_that_not_every_library_turns(labeler, kind, turned_to):
    """It is that of what loaders see, whoever has turned it."""
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    content = encoded(photo(), kind, exif=exif)
    size = image_size_of(labeler, content, f"x.{kind}")
    assert turned_to in (None, size)
    assert read_image(labeler.images / f"x.{kind}").shape[1::-1] == size
    assert label(labeler, content, size, f"x.{kind}") == 1


def image_size_of(labeler, content, name):
    (labeler.images / name).write_bytes(content)
    return image_size(labeler.images / name)


@pytest.mark.parametrize("kind", ["jpeg", "png"])
def test_only_exif_turns(labeler, kind):
    """Pillow also finds an orientation in XMP and in what ImageMagick writes."""
    xmp = '<x:xmpmeta xmlns:x="adobe:ns:meta/"><tiff:Orientation>6</tiff:Orientation></x:xmpmeta>'
    options = dict(xmp=xmp.encode())
    if kind == "png":
        exif = Image.Exif()
        exif[ORIENTATION] = 6
        profile = f"\nexif\n{len(exif.tobytes())}\n{exif.tobytes().hex()}\n"
        info = PngImagePlugin.PngInfo()
        info.add_itxt("XML:com.adobe.xmp", xmp)
        info.add_text("Raw profile type exif", profile, zip=True)
        options = dict(pnginfo=info)
    content = encoded(photo(), kind, **options)
    assert Image.open(io.BytesIO(content)).getexif().get(ORIENTATION) == 6
    assert image_size_of(labeler, content, f"x.{kind}") == (40, 30)
    assert read_image(labeler.images / f"x.{kind}").shape == (30, 40, 3)


def test_limits_that_are_none():
    code = "import runpy, sys; from PIL import Image; Image.MAX_IMAGE_PIXELS = None; "
    code += "print(runpy.run_path(sys.argv[1])['MAX_PIXELS'])"
    command = [sys.executable, "-c", code, str(ROOT / "mal_mmdet/labeling/images.py")]
    assert subprocess.run(command, capture_output=True, text=True).stdout == "inf\n"
    done = subprocess.run(command, env={LIMIT: "4e8"}, capture_output=True, text=True)
    assert f"variable {LIMIT} is '4e8', expected a whole number of pixels" in done.stderr


def test_a_box_cannot_ask_for_too_many_pixels(labeler):
    problem = bbox_problem([-9000, -9000, 28000, 28000], 10_000, 10_000)
    assert f"has more than {MAX_PIXELS} pixels, most of them beyond its image" in problem
    assert not bbox_problem([-900, -900, 2800, 2800], 1000, 1000)
