# SPDX-License-Identifier: Apache-2.0
"""What is looked at before an image is decoded: its header, and the name it goes by."""

from __future__ import annotations

import math
import os
import os.path as osp
from pathlib import Path, PurePosixPath

import cv2
import numpy as np
from PIL import Image

LIMIT = "MAL_MMDET_MAX_PIXELS"
if LIMIT in os.environ:
    if not os.environ[LIMIT].isdecimal():
        raise ValueError(
            f"the environment variable {LIMIT} is {os.environ[LIMIT]!r}, expected a whole number "
            "of pixels"
        )
    Image.MAX_IMAGE_PIXELS = int(os.environ[LIMIT]) // 2
# Where Pillow stops; 178956970 as it comes, and nowhere if somebody has set None.
MAX_PIXELS = math.inf if Image.MAX_IMAGE_PIXELS is None else 2 * Image.MAX_IMAGE_PIXELS
RAISE_LIMIT = (
    f"more than {MAX_PIXELS}. A small file can fill the memory so; if this one is what it should "
    f"be, set the environment variable {LIMIT} to a larger number of pixels"
)
ORIENTATION = 0x0112  # EXIF's tag
ROTATED = (5, 6, 7, 8)  # values of it that swap width and height
TURNED = ("JPEG", "MPO", "PNG")  # by OpenCV; WebP and AVIF are not, TIFF Pillow turns itself


def image_size(path: str | Path) -> tuple[int, int]:
    """Width and height as an image is loaded, turned the way its camera was held.

    Raises:
        OSError: No image, or one of more than ``MAX_PIXELS``.
    """
    with open_image(path) as image:
        try:
            turned = image.format in TURNED and _orientation(image) in ROTATED
        except Exception:  # of all kinds; OpenCV too turns nothing by EXIF that it cannot read
            turned = False
        return image.size[::-1] if turned else image.size


def _orientation(image: Image.Image) -> int | None:
    """EXIF's alone: ``getexif`` also gives XMP's and ImageMagick's, which OpenCV does not read."""
    image.getexif()  # of a PNG, it may stand behind the pixels
    exif = Image.Exif()
    exif.load(image.info.get("exif", b""))
    return exif.get(ORIENTATION)


def open_image(path: str | Path) -> Image.Image:
    """Opens an image and reads its header alone.

    Raises:
        OSError: No image, or one of more than ``MAX_PIXELS``.
    """
    if osp.exists(path) and not osp.isfile(path):
        raise OSError(f"{path} is no file")  # reading from a pipe or a device may never end
    try:
        return Image.open(path)
    except Image.DecompressionBombError as error:
        raise OSError(f"{path} has {RAISE_LIMIT} ({error})") from None
    except (SyntaxError, ValueError, OverflowError) as error:  # Pillow's word for a bad header
        raise OSError(f"{path} is no image: {error}") from error


def read_image(path: str | Path) -> np.ndarray:
    """An image as uint8, BGR, shape (H, W, 3).

    Raises:
        ValueError: It cannot be read.
    """
    try:
        open_image(path).close()  # or the decoder might fill the memory
        # As MMCV does; `cv2.imread` fails with TIFFs that this one reads.
        pixels = cv2.imdecode(np.fromfile(path, dtype=np.uint8), cv2.IMREAD_COLOR)
    except (OSError, cv2.error) as error:
        raise ValueError(f"image {path} cannot be read ({error})") from error
    if pixels is None:
        raise ValueError(f"image {path} cannot be read")
    return pixels


def leaves_folder(name: str) -> bool:
    """Whether a file name leads out of the folder that it is relative to.

    That is judged by the name alone: absolute, with ``..`` in it, or the address of a server.
    Links in the folder are not looked through, as data sets are often folders of links.
    """
    path = PurePosixPath(name)
    return path.is_absolute() or ".." in path.parts or "://" in name
