# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from mal_mmdet.datasets.demo_dataset import load_photos
from mal_mmdet.labeling import paste_mask
from mal_mmdet.structures import (
    bbox_to_crop,
    border_indices,
    box_masks,
    crop_and_resize,
    expand_bbox,
    mask_on_cells,
    resample_maps,
    resize_bboxes,
    resize_maps,
)
from mal_mmdet.structures.crop_geometry import BORDERS

# Inside, touching a border, over one border, over a corner, and larger than the image.
BOXES = [
    (30, 20, 70, 60),
    (0, 0, 40, 30),
    (-12.5, 10, 30, 50),
    (70, 50, 130, 110),
    (-20, -20, 140, 120),
]


def test_expand_bbox_moves_each_side_by_its_margin():
    crop = expand_bbox(np.array([10, 20, 30, 60]), np.array([0.5, 0.0, 1.0, 0.25]))
    assert crop.tolist() == [5, 20, 40, 65]


def test_expand_bbox_rounds_outward_and_is_never_empty():
    assert expand_bbox(np.array([1.2, 1.2, 3.1, 3.9]), np.zeros(4)).tolist() == [1, 1, 4, 4]
    assert expand_bbox(np.array([2.0, 2.0, 2.0, 2.0]), np.zeros(4)).tolist() == [2, 2, 3, 3]


@pytest.mark.parametrize("length", [1, 2, 5])
def test_border_indices_against_numpy_pad(length):
    row = np.arange(length)
    for border, mode in (("reflect", "reflect"), ("wrap", "wrap")):
        if length == 1:
            expected = np.zeros(21, dtype=int)
        else:
            expected = np.pad(row, 10, mode=mode)[: length + 20][:21]
        assert border_indices(-10, 11, length, border).tolist() == expected.tolist()


def test_border_indices_refuses_unknown_border():
    with pytest.raises(ValueError, match=r"'zero'.*reflect"):
        border_indices(0, 2, 2, "zero")


@pytest.mark.parametrize("bbox", BOXES)
@pytest.mark.parametrize("border", ["reflect", "wrap"])
def test_crop_shows_the_box_where_bbox_to_crop_says(bbox, border):
    """A white box on black: its corners in the crop are where the geometry puts them."""
    height, width, size = 80, 100, 64
    image = np.zeros((height, width, 3), dtype=np.uint8)
    x0, y0, x1, y1 = np.clip(np.round(bbox), 0, [width, height] * 2).astype(int)
    image[y0:y1, x0:x1] = 255
    crop_bbox = expand_bbox(np.array(bbox), np.full(4, 0.3))
    crop = crop_and_resize(image, crop_bbox, size, border)
    assert crop.shape == (size, size, 3)
    cx0, cy0, cx1, cy1 = bbox_to_crop(np.array([x0, y0, x1, y1]), crop_bbox, size)
    inside = crop[int(np.ceil(cy0)) + 1 : int(cy1) - 1, int(np.ceil(cx0)) + 1 : int(cx1) - 1]
    assert inside.size and inside.min() > 250
    # Just outside the box, where that is still inside the image, it is black.
    ix0, iy0, ix1, iy1 = bbox_to_crop(np.array([0, 0, width, height]), crop_bbox, size)
    row, column = int((cy0 + cy1) / 2), int((cx0 + cx1) / 2)
    for y, x, seen in (
        (row, int(cx0) - 3, x0 > 0 and cx0 - 3 >= max(ix0, 0)),
        (row, int(np.ceil(cx1)) + 2, x1 < width and cx1 + 3 < min(ix1, size)),
        (int(cy0) - 3, column, y0 > 0 and cy0 - 3 >= max(iy0, 0)),
        (int(np.ceil(cy1)) + 2, column, y1 < height and cy1 + 3 < min(iy1, size)),
    ):
        if seen:
            assert crop[y, x].max() < 5


@pytest.mark.parametrize("bbox", [(3, 5, 40, 61), (-30, 20, 150, 79), (60, -90, 230, 170)])
@pytest.mark.parametrize("size", [32, 200])
@pytest.mark.parametrize("border", BORDERS)
def test_crop_is_what_numpy_and_pillow_make(bbox, size, border):
    """Up to rounding, for a crop inside the image, over its border and several times its size."""
    photo = load_photos(("astronaut.png",))["astronaut.png"][100:180, 100:200].copy()
    x0, y0, x1, y1 = bbox
    padded = np.pad(photo, ((200, 200), (200, 200), (0, 0)), mode=border)
    part = Image.fromarray(padded[200 + y0 : 200 + y1, 200 + x0 : 200 + x1])
    expected = np.asarray(part.resize((size, size), Image.Resampling.BICUBIC))
    # Backends hand out images whose channels are turned round.
    for image in (photo, photo[..., ::-1].copy()[..., ::-1]):
        crop = crop_and_resize(image, np.array(bbox), size, border)
        apart = np.abs(crop.astype(int) - expected)
        assert apart.mean() < 0.3 and (apart > 1).mean() < 0.005 and apart.max() <= 5


@pytest.mark.parametrize("bbox", BOXES)
def test_a_crop_mask_comes_back_within_a_pixel(bbox):
    """An ellipse drawn in the crop frame lands on the same ellipse drawn in the image."""
    height, width, size = 80, 100, 128
    crop_bbox = expand_bbox(np.array(bbox), np.full(4, 0.3))
    cx0, cy0, cx1, cy1 = bbox_to_crop(np.array(bbox), crop_bbox, size)
    y, x = np.mgrid[:size, :size] + 0.5
    inside = ((2 * x - cx0 - cx1) / (cx1 - cx0)) ** 2 + ((2 * y - cy0 - cy1) / (cy1 - cy0)) ** 2
    out = torch.zeros(height, width, dtype=torch.bool)
    paste_mask(torch.from_numpy(inside <= 1).float(), crop_bbox, bbox, 0.5, out)

    y, x = np.mgrid[:height, :width] + 0.5

    def ellipse(grow):
        rx, ry = (bbox[2] - bbox[0]) / 2 + grow, (bbox[3] - bbox[1]) / 2 + grow
        u = (x - (bbox[0] + bbox[2]) / 2) / rx
        v = (y - (bbox[1] + bbox[3]) / 2) / ry
        return u**2 + v**2 <= 1

    assert (out.numpy() <= ellipse(1)).all()
    assert (ellipse(-1) <= out.numpy()).all()


def test_resampled_maps_against_interpolation_at_each_cell():
    maps = torch.rand(2, 3, 5, 7)
    frames = torch.tensor([[0, 0, 14, 10], [3, 2, 20, 30], [-4, 5, 10, 25]])
    others = torch.tensor([[2, 1, 12, 9], [-2, -4, 25, 36], [-4, 5, 10, 25]])
    found = resample_maps(maps, frames, others)
    assert found.shape == maps.shape
    for k, n, i, j in np.ndindex(*maps.shape):
        cell = []
        for axis, place, length in ((1, i, 5), (0, j, 7)):
            (low, high), (start, stop) = frames[n, axis::2].tolist(), others[n, axis::2].tolist()
            at = start + (place + 0.5) * (stop - start) / length  # in the image
            cell.append(np.clip((at - low) / (high - low) * length - 0.5, 0, length - 1))
        (y, x), (top, left) = cell, (int(c) for c in cell)
        bottom, right = min(top + 1, 4), min(left + 1, 6)
        rows = [
            maps[k, n, row, left] * (left + 1 - x) + maps[k, n, row, right] * (x - left)
            for row in (top, bottom)
        ]
        expected = rows[0] * (top + 1 - y) + rows[1] * (y - top)
        assert float(found[k, n, i, j]) == pytest.approx(float(expected), abs=1e-5)
    torch.testing.assert_close(found[:, 2], maps[:, 2])  # the same frame


def test_resized_maps_lie_on_the_line_between_their_cells():
    ramp = torch.arange(4.0).expand(1, 2, 3, 4)
    resized = resize_maps(ramp, (6, 8))
    assert resized.shape == (1, 2, 6, 8)
    # Centres of cells half as wide; beyond the outermost centre a map goes on as it ends.
    line = torch.tensor([0, 0.25, 0.75, 1.25, 1.75, 2.25, 2.75, 3])
    torch.testing.assert_close(resized, line.expand(1, 2, 6, 8))


def test_maps_of_that_size_are_not_made_anew():
    maps = torch.rand(1, 1, 5, 3)
    assert resize_maps(maps, (5, 3)) is maps
    assert torch.equal(resize_maps(maps, (5, 3)), F.interpolate(maps, (5, 3), mode="bilinear"))


def test_box_masks_against_supersampling():
    boxes = torch.tensor([[1.25, 0.5, 3.75, 4.0], [-2.0, -1.0, 2.5, 9.0], [2.1, 2.1, 2.3, 2.4]])
    fine = 20
    naive = torch.zeros(3, 5, 6)
    for n, (x0, y0, x1, y1) in enumerate(boxes.tolist()):
        for row in range(5):
            for column in range(6):
                points = [
                    (x0 <= column + (i + 0.5) / fine < x1) and (y0 <= row + (j + 0.5) / fine < y1)
                    for i in range(fine)
                    for j in range(fine)
                ]
                naive[n, row, column] = sum(points) / fine**2
    torch.testing.assert_close(box_masks(boxes, (5, 6)), naive, atol=1e-5, rtol=0)


@pytest.mark.parametrize("crop", [(3, 2, 19, 18), (-7, -3, 13, 21), (5, 4, 11, 7), (4, 1, 37, 14)])
def test_mask_on_cells_against_fine_sampling(crop):
    """Every cell as 60 × 60 points; crops that leave the image, and cells under a pixel."""
    mask = torch.rand(20, 30) > 0.45
    height, width = 5, 4
    x0, y0, x1, y1 = crop
    points = (torch.arange(60) + 0.5) / 60
    expected, share = torch.zeros(2, height, width)
    for i in range(height):
        for j in range(width):
            ys = (y0 + (i + points) * (y1 - y0) / height).floor().long()
            xs = (x0 + (j + points) * (x1 - x0) / width).floor().long()
            inside = ((ys >= 0) & (ys < 20))[:, None] & ((xs >= 0) & (xs < 30))
            values = mask[ys.clip(0, 19)][:, xs.clip(0, 29)] & inside
            share[i, j] = values.double().mean()
    clear = (share - 0.5).abs() > 0.03  # the sampling's own error
    expected = share > 0.5
    found = mask_on_cells(mask, torch.tensor(crop), (height, width))
    assert torch.equal(found[clear], expected[clear])
    assert clear.sum() > 10 and expected.any() and not expected.all()


def test_half_a_cell_is_background():
    mask = torch.zeros(4, 4, dtype=torch.bool)
    mask[:, 0] = mask[0, 2] = mask[:2, 3] = True
    found = mask_on_cells(mask, torch.tensor([0, 0, 4, 4]), (2, 2))
    assert found.tolist() == [[False, True], [False, False]]


def test_boxes_follow_the_size_of_their_map():
    boxes = torch.tensor([[1.0, 2.0, 3.0, 4.0], [-4.0, 0.0, 8.0, 6.5]])
    found = resize_bboxes(boxes, (10, 20), (5, 80))
    assert found.tolist() == [[4.0, 1.0, 12.0, 2.0], [-16.0, 0.0, 32.0, 3.25]]
