# SPDX-License-Identifier: Apache-2.0
import re

import numpy as np
import pytest
from mmdet.registry import DATASETS
from mmdet.structures.mask import PolygonMasks
from mmengine.hub import get_config
from pycocotools import mask as mask_utils
from scipy.ndimage import gaussian_filter, label

from mal_mmdet.labeling import (
    encode_mask,
    join_parts,
    mask_problem,
    mask_to_polygons,
    read_coco,
    segmentation_to_mask,
    write_json,
)

RING = np.ones((20, 24), dtype=bool)
RING[5:13, 6:20] = False
NESTED = np.pad(RING, 1)
NESTED[8:12, 10:15] = True  # a part in the hole
NESTED[9, 12] = False  # with a hole of its own
CORNERS = np.eye(6, dtype=bool) | np.eye(6, dtype=bool)[::-1]


def blobs(seed):
    """Smooth noise: several parts with holes."""
    rng = np.random.default_rng(seed)
    noise = gaussian_filter(rng.random((150, 180)), rng.uniform(2, 9))
    return noise > np.quantile(noise, rng.uniform(0.3, 0.8))


def even_odd(polygons, height, width):
    """Naive reader: a pixel is inside where a ray from its centre meets an odd number of edges."""
    mask = np.zeros((height, width), dtype=bool)
    rows, columns = np.mgrid[:height, :width] + 0.5
    for polygon in polygons:
        points = np.reshape(polygon, (-1, 2))
        inside = np.zeros_like(mask)
        for (x0, y0), (x1, y1) in zip(points, np.roll(points, -1, axis=0)):
            if y0 != y1:
                meets = (y0 <= rows) != (y1 <= rows)
                inside ^= meets & (columns < x0 + (rows - y0) * (x1 - x0) / (y1 - y0))
        mask |= inside
    return mask


def iou(a, b):
    return (a & b).sum() / (a | b).sum()


def readings(polygons, mask):
    """The mask as pycocotools, a naive even-odd reader, and mmdet after a crop get it."""
    height, width = mask.shape
    yield segmentation_to_mask(polygons, height, width) > 0
    yield even_odd(polygons, height, width)
    arrays = PolygonMasks([[np.array(p) for p in polygons]], height, width)
    yield arrays.crop(np.array([0, 0, width, height])).to_ndarray()[0] > 0


@pytest.mark.parametrize("mask", [RING, NESTED, CORNERS, ~CORNERS], ids="rnch")
def test_holes_and_corners_exactly(mask):
    polygons = mask_to_polygons(mask)
    for found in readings(polygons, mask):
        np.testing.assert_array_equal(found, mask)


def test_one_polygon_per_part():
    assert [len(mask_to_polygons(m)) for m in (RING, NESTED, CORNERS)] == [1, 2, 1]
    assert mask_to_polygons(np.zeros((5, 7), dtype=bool)) == []


@pytest.mark.parametrize("pixels", [[(0, 0)], [(4, 6)], [(2, 3), (2, 4)], [(1, 1), (2, 2), (3, 3)]])
def test_tiny_masks_do_not_vanish(pixels):
    mask = np.zeros((5, 7), dtype=bool)
    mask[tuple(zip(*pixels))] = True
    polygons = mask_to_polygons(mask)
    assert all(len(p) >= 8 and all(isinstance(v, float) for v in p) for p in polygons)
    for found in readings(polygons, mask):
        np.testing.assert_array_equal(found, mask)


def test_small_random_masks_are_exact_enough():
    rng = np.random.default_rng(0)
    for _ in range(200):
        mask = rng.random(rng.integers(1, 9, 2)) < rng.random()
        if mask.any():
            for found in readings(mask_to_polygons(mask), mask):
                assert iou(found, mask) >= 0.98


def test_an_outline_that_only_fits_when_it_is_moved():
    mask = np.ones((8, 15), dtype=bool)
    mask[0, [0, 1, -2, -1]] = mask[1, [0, -1]] = False
    found = segmentation_to_mask(mask_to_polygons(mask), *mask.shape)
    assert iou(found > 0, mask) >= 0.98


def test_diagonals_through_the_centres_of_pixels():
    """Readers decide such ties differently, so that smoothing must not create too many."""
    rows, columns = np.mgrid[:60, :60]
    for radius in (10, 20, 28):
        mask = abs(rows - 30) + abs(columns - 30) <= radius
        for found in readings(mask_to_polygons(mask), mask):
            assert iou(found, mask) >= 0.98


@pytest.mark.parametrize("seed", range(6))
def test_blobs(seed):
    mask = blobs(seed)
    polygons = mask_to_polygons(mask)
    assert len(polygons) == label(mask, np.ones((3, 3)))[1]
    for found in readings(polygons, mask):
        assert iou(found, mask) >= 0.98
    joined = [join_parts(polygons)]
    assert iou(segmentation_to_mask(joined, *mask.shape) > 0, mask) >= 0.98
    assert iou(even_odd(joined, *mask.shape), mask) >= 0.98


def test_masks_of_the_demo_data_are_smoothed(demo):
    before = after = 0
    for ann in read_coco(demo / "instances_val.json")["annotations"]:
        mask = segmentation_to_mask(ann["segmentation"], *ann["segmentation"]["size"]) > 0
        polygons = mask_to_polygons(mask)
        for found in readings(polygons, mask):
            assert iou(found, mask) >= 0.98
        edges = [np.diff(np.pad(mask, 1).astype(int), axis=a) != 0 for a in (0, 1)]
        before += sum(e.sum() for e in edges)
        after += sum(len(p) // 2 for p in polygons)
    assert after < before / 8


def test_every_kind_of_segmentation():
    rle = encode_mask(RING)
    polygon = [[0, 0, 24, 0, 24, 20, 0, 20]]
    runs = [5, 3, 20 * 24 - 8]
    assert (segmentation_to_mask(rle, 20, 24) == RING).all()
    assert segmentation_to_mask(polygon, 20, 24).all()
    counts = dict(size=[20, 24], counts=runs)
    assert segmentation_to_mask(counts, 20, 24)[5:8, 0].sum() == 3
    assert mask_utils.area(rle) == RING.sum()


def read_as(config, ann_file, img_dir):
    """Masks that the training pipeline of a stock config gets from a label file."""
    dataset = get_config(f"mmdet::{config}").train_dataloader.dataset
    dataset = dataset.get("dataset", dataset)  # in a RepeatDataset
    classes = [category["name"] for category in read_coco(ann_file)["categories"]]
    files = dict(data_root="", ann_file=str(ann_file), data_prefix=dict(img=str(img_dir)))
    dataset.update(files, metainfo=dict(classes=classes))
    built = DATASETS.build(dataset)
    samples = [built.prepare_data(i) for i in range(len(built))]
    return [s["data_samples"].gt_instances.masks.to_ndarray() for s in samples if s is not None]


@pytest.mark.parametrize(
    "config",
    [
        "rtmdet/rtmdet-ins_tiny_8xb32-300e_coco.py",
        "mask_rcnn/mask-rcnn_r50_fpn_ms-poly-3x_coco.py",
    ],
)
def test_stock_pipelines_that_read_polygons_alone(demo, tmp_path, config):
    labels = read_coco(demo / "instances_train.json")
    assert sum(map(len, read_as(config, demo / "instances_train.json", demo / "train"))) == 0
    for ann in labels["annotations"]:
        rle = ann["segmentation"]
        ann["segmentation"] = mask_to_polygons(segmentation_to_mask(rle, *rle["size"]))
    write_json(tmp_path / "polygons.json", labels)
    masks = read_as(config, tmp_path / "polygons.json", demo / "train")
    assert sum(map(len, masks)) >= len(labels["annotations"]) / 2  # what crops leave
    assert all(mask.any() for mask in masks)


def test_outlines_that_would_fill_the_memory():
    """pycocotools overflows on such, or gets no memory and goes on."""
    wide, plain = dict(height=1, width=178956970), dict(height=5000, width=30000)
    corners = [[-1e5, -1e5], [1e5, 1e5]]
    for polygon, image in (
        ([0, 0, 7e8, 0, 7e8, 1], wide),
        ([v for i in range(2000) for v in corners[i % 2]], plain),
    ):
        assert re.search("outlines are .* pixels long, more than", mask_problem([polygon], image))
    assert mask_problem([[0, 0, 30000, 0, 30000, 5000, 0, 5000]], plain) is None
