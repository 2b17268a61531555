# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest
from mmdet.structures.mask import PolygonMasks
from pycocotools import mask as mask_utils
from scipy.ndimage import gaussian_filter, label

from mal_mmdet.labeling import (
    encode_mask,
    join_parts,
    mask_to_polygons,
    read_coco,
    segmentation_to_mask,
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
