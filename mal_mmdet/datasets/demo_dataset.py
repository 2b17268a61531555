# SPDX-License-Identifier: Apache-2.0
"""A small data set with exact masks, composed from the photographs of scikit-image's wheel.

Shapes that a box describes badly (stars, rings, crescents, …), cut from some photographs and
laid on others. Needs scikit-image, and nothing from a network.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw
from pycocotools import mask as mask_utils

from mal_mmdet.labeling import encode_mask, write_boxes_only, write_json
from mal_mmdet.progress import track

BACKGROUNDS = ("grass.png", "gravel.png", "brick.png", "moon.png")
TEXTURES = ("astronaut.png", "chelsea.png", "coffee.png", "ihc.png", "motorcycle_left.png")
CATEGORIES = ("star", "ring", "crescent", "cross", "frame", "arrow", "horseshoe")
SIZE = 320  # side of an image in pixels
SUPERSAMPLING = 4


def make_demo_dataset(out: str | Path, seed: int, num_train: int, num_val: int) -> None:
    """Writes images and COCO files; the same arguments give the same bytes.

    Args:
        out: Folder; gets ``train/``, ``val/``, ``boxes_train.json`` (no masks in it),
            ``instances_train.json``, ``boxes_val.json`` and ``instances_val.json``.
        seed: Seed of everything.
        num_train, num_val: Number of images.
    """
    out = Path(out)
    photos = load_photos(BACKGROUNDS + TEXTURES)
    for split, number in (("train", num_train), ("val", num_val)):
        (out / split).mkdir(parents=True, exist_ok=True)
        coco = dict(
            info=dict(description=f"mal_mmdet demo data, {split}, seed {seed}"),
            images=[],
            annotations=[],
            categories=[dict(id=i + 1, name=name) for i, name in enumerate(CATEGORIES)],
        )
        for i in track(range(number), f"composing {split}", "images"):
            rng = np.random.default_rng([seed, split == "val", i])
            image, objects = compose_image(photos, rng)
            image_id = i + 1
            name = f"{image_id:05d}.jpg"
            Image.fromarray(image).save(out / split / name, quality=95)
            coco["images"].append(dict(id=image_id, file_name=name, width=SIZE, height=SIZE))
            for category, mask in objects:
                rle = encode_mask(mask)
                annotation = dict(
                    id=len(coco["annotations"]) + 1,
                    image_id=image_id,
                    category_id=category + 1,
                    bbox=mask_utils.toBbox(rle).tolist(),
                    area=int(mask.sum()),
                    iscrowd=0,
                    segmentation=rle,
                )
                coco["annotations"].append(annotation)
        write_json(out / f"instances_{split}.json", coco)
        write_boxes_only(out / f"instances_{split}.json", out / f"boxes_{split}.json")


def load_photos(names: tuple[str, ...]) -> dict[str, np.ndarray]:
    """Photographs of scikit-image's wheel as uint8 RGB, by file name."""
    try:
        import skimage
    except ImportError as error:
        raise ImportError("the demo data needs scikit-image: pip install scikit-image") from error
    folder = Path(skimage.__file__).parent / "data"
    return {name: np.asarray(Image.open(folder / name).convert("RGB")) for name in names}


def compose_image(
    photos: dict[str, np.ndarray], rng: np.random.Generator
) -> tuple[np.ndarray, list[tuple[int, np.ndarray]]]:
    """One image with two or three objects.

    Returns:
        The image, uint8 (SIZE, SIZE, 3), and for each object its category index and its
        visible mask, bool (SIZE, SIZE).
    """
    canvas = random_patch(photos[rng.choice(BACKGROUNDS)], SIZE, rng).astype(np.float32)
    objects: list[tuple[int, np.ndarray]] = []
    wanted = rng.integers(2, 4)
    for _ in range(20):
        if len(objects) == wanted:
            break
        category = int(rng.integers(len(CATEGORIES)))
        alpha = random_shape(CATEGORIES[category], rng)
        mask = alpha >= 0.5
        # It may cover others, but no more than 5 % of each.
        if any((old & mask).sum() > 0.05 * old.sum() for _, old in objects):
            continue
        texture = random_patch(photos[rng.choice(TEXTURES)], SIZE, rng)
        canvas += alpha[..., None] * (texture - canvas)
        objects = [(c, old & ~mask) for c, old in objects] + [(category, mask)]
    return canvas.round().clip(0, 255).astype(np.uint8), objects


def random_patch(photo: np.ndarray, size: int, rng: np.random.Generator) -> np.ndarray:
    """A piece of a photograph at random place, scale, quarter turn, mirroring and colour."""
    side = int(min(photo.shape[:2]) * rng.uniform(0.35, 0.9))
    top = rng.integers(photo.shape[0] - side + 1)
    left = rng.integers(photo.shape[1] - side + 1)
    patch = np.rot90(photo[top : top + side, left : left + side], rng.integers(4))
    if rng.random() < 0.5:
        patch = patch[:, ::-1]
    patch = np.asarray(Image.fromarray(patch).resize((size, size), Image.Resampling.LANCZOS))
    gain = rng.uniform(0.75, 1.25) * rng.uniform(0.8, 1.2, 3)
    return (patch * gain).clip(0, 255)


def random_shape(category: str, rng: np.random.Generator) -> np.ndarray:
    """Anti-aliased coverage of one object, float32 (SIZE, SIZE) in [0, 1].

    The outline of the category, stretched, rotated and placed at random.
    """
    extent = rng.uniform(52, 88)  # about half of the object's side in pixels
    angle = np.deg2rad(rng.uniform(-40, 40))
    stretch = np.diag(extent * np.array([1, rng.uniform(0.75, 1.0)]))
    rotation = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    centre = rng.uniform(0.8 * extent, SIZE - 0.8 * extent, 2)
    fine = Image.new("L", (SIZE * SUPERSAMPLING,) * 2)
    draw = ImageDraw.Draw(fine)
    for value, outline in outlines(category):
        points = (outline @ stretch @ rotation + centre) * SUPERSAMPLING
        draw.polygon([tuple(point) for point in points], fill=value)
    return np.asarray(fine.reduce(SUPERSAMPLING), dtype=np.float32) / 255


def outlines(category: str) -> list[tuple[int, np.ndarray]]:
    """Polygons of a category in [−1, 1]², each with 255 to fill or 0 to cut out."""

    def circle(radius: float, x: float = 0.0, start: float = 0.0, stop: float = 2.0) -> np.ndarray:
        t = np.linspace(start * np.pi, stop * np.pi, 64)
        return np.stack([x + radius * np.cos(t), radius * np.sin(t)], 1)

    if category == "star":
        t = np.arange(10) * np.pi / 5
        radius = np.where(np.arange(10) % 2, 0.55, 1.0)
        return [(255, np.stack([radius * np.cos(t), radius * np.sin(t)], 1))]
    if category == "ring":
        return [(255, circle(1.0)), (0, circle(0.42))]
    if category == "crescent":
        return [(255, circle(1.0)), (0, circle(0.7, x=0.6))]
    if category == "cross":
        a, b = 1.0, 0.38
        corners = [(b, b), (b, a), (-b, a), (-b, b), (-a, b), (-a, -b)]
        corners += [(-b, -b), (-b, -a), (b, -a), (b, -b), (a, -b), (a, b)]
        return [(255, np.array(corners))]
    if category == "frame":
        square = np.array([(-0.85, -0.85), (0.85, -0.85), (0.85, 0.85), (-0.85, 0.85)])
        return [(255, square), (0, square * 0.42)]
    if category == "arrow":
        head = [(0.1, -0.95), (1.0, 0.0), (0.1, 0.95)]
        return [(255, np.array([*head, (0.1, 0.4), (-1.0, 0.4), (-1.0, -0.4), (0.1, -0.4)]))]
    if category == "horseshoe":
        outer, inner = circle(1.0, start=0.5, stop=1.5), circle(0.4, start=1.5, stop=0.5)
        ends = np.array([(0.8, -1.0), (0.8, -0.4)]), np.array([(0.8, 0.4), (0.8, 1.0)])
        return [(255, np.concatenate([outer, ends[0], inner, ends[1]]))]
    raise ValueError(f"category is {category!r}, but must be one of {CATEGORIES}")
