# SPDX-License-Identifier: Apache-2.0
"""The estimate of a mask's quality, and the measurement of that estimate."""

import math
import subprocess
import sys

import numpy as np
import pytest
import torch

from mal_mmdet.evaluation import measure_quality, rank_quality
from mal_mmdet.labeling import encode_mask, write_json
from mal_mmdet.labeling.mask_quality import (
    GRID,
    border_contrast,
    colour_separation,
    ellipse_iou,
    expected_iou,
    mask_quality,
)
from tests.conftest import ROOT


def blob(radius=10.0, contrast=4.0, centre=16.0):
    """Logits of a disc on the grid, positive inside, (G, G)."""
    cells = torch.arange(GRID) + 0.5 - centre
    return contrast * (radius - (cells[:, None] ** 2 + cells**2).sqrt()).clamp(-1, 1)


def picture(mask, noise=0.0):
    """Red where the mask is, else blue, (3, G, G)."""
    image = torch.stack([mask.float(), torch.zeros(GRID, GRID), 1 - mask.float()])
    return image + noise * torch.randn(3, GRID, GRID, generator=torch.Generator().manual_seed(0))


BOX = torch.tensor([[6.0, 6.0, 26.0, 26.0]])
HALF = torch.tensor([0.5])


def quality(view_logits, images, threshold=0.5, box=BOX, refined=None):
    number = view_logits.shape[1]
    return mask_quality(
        view_logits, torch.full((number,), threshold), box.expand(number, 4), images, refined
    )


def naive(view_logits, threshold, box, image, refined=None):
    """One mask by loops; every cell counts as the box covers it."""
    cells = [(y, x) for y in range(GRID) for x in range(GRID)]

    def share(low, high, cell):
        return min(max(min(cell + 1, high) - max(cell, low), 0), 1)

    x0, y0, x1, y1 = box.tolist()
    cover = {(y, x): share(y0, y1, y) * share(x0, x1, x) for y, x in cells}
    shift = math.log(threshold / (1 - threshold))

    def expected(logits):
        mask, prob = {}, {}
        for y, x in cells:
            views = logits[:, y, x].double() - shift
            mean = float(views.mean())
            variance = float(((views - mean) ** 2).mean())
            mask[y, x] = cover[y, x] * (mean > 0)
            prob[y, x] = 1 / (1 + math.exp(-mean / math.sqrt(1 + math.pi / 8 * variance)))
        inside = sum(prob[c] * mask[c] for c in cells)
        union = sum(mask[c] + prob[c] * (cover[c] - mask[c]) for c in cells)
        return mask, inside / union

    mask, network = expected(view_logits)

    both = either = 0.0
    for y, x in cells:
        across = (x + 0.5 - (x0 + x1) / 2) / ((x1 - x0) / 2)
        down = (y + 0.5 - (y0 + y1) / 2) / ((y1 - y0) / 2)
        ellipse = float(across**2 + down**2 < 1)
        both, either = both + min(mask[y, x], ellipse), either + max(mask[y, x], ellipse)
    shape = both / either

    colours = image.double().numpy()
    colours = colours - colours.mean((1, 2), keepdims=True)
    colours = colours / (np.sqrt((colours**2).mean((1, 2), keepdims=True)) + 1e-6)
    rows, targets, weights = [], [], []
    area = sum(mask.values())
    for y, x in cells:
        c = colours[:, y, x]
        terms = [1, *c, *(c[i] * c[j] for i in range(3) for j in range(i, 3))]
        for target, weight in ((1, mask[y, x] / area), (-1, (1 - mask[y, x]) / (GRID**2 - area))):
            rows.append(terms)
            targets.append(target)
            weights.append(weight)
    rows, targets, weights = np.array(rows), np.array(targets), np.array(weights)
    moments = (rows * weights[:, None]).T @ rows + 1e-3 * np.eye(rows.shape[1])
    fit = rows @ np.linalg.solve(moments, rows.T @ (weights * targets))
    colour = (weights * (np.sign(fit) == targets)).sum() / 2

    border = step = pairs = total = 0.0
    for y, x in cells:
        for other in ((y + 1, x), (y, x + 1)):
            if other in mask:
                change = np.linalg.norm(colours[:, y, x] - colours[:, other[0], other[1]])
                crossing, within = abs(mask[other] - mask[y, x]), min(cover[other], cover[y, x])
                border, step = border + crossing, step + crossing * change
                pairs, total = pairs + within, total + within * change
    contrast = (step / border) / (step / border + total / pairs)
    opinions = [network, shape, colour, contrast]
    if refined is not None:
        opinions.append(expected(refined[None])[1])
    return sum(opinions) / len(opinions)


@pytest.mark.parametrize("refine", [False, True])
@pytest.mark.parametrize("views, threshold", [(1, 0.5), (2, 0.5), (4, 0.2)])
def test_against_loops(views, threshold, refine):
    random = torch.Generator().manual_seed(views)
    logits = blob() + torch.randn(views, 3, GRID, GRID, generator=random)
    images = torch.stack([picture(blob(r) > 0, noise=0.5) for r in (8, 10, 12)])
    boxes = torch.tensor([[6, 6, 26, 26], [4.3, 7.6, 25.5, 24.9], [-3.0, 10.0, 40.0, 22.5]])
    refined = None
    if refine:
        refined = blob(radius=9) + torch.randn(3, GRID, GRID, generator=random)
    fine = refined if refined is None else refined.repeat_interleave(2, 1).repeat_interleave(2, 2)
    found = mask_quality(logits, torch.full((3,), threshold), boxes, images, fine)
    assert found.shape == (3,) and found.dtype == torch.float32
    expected = [
        naive(logits[:, i], threshold, boxes[i], images[i], refined[i] if refine else None)
        for i in range(3)
    ]
    torch.testing.assert_close(found, torch.tensor(expected).float(), atol=1e-4, rtol=0)


def test_by_hand():
    """Two cells of four in the mask, with 0.9 and 0.6; 0.3 and 0.1 outside."""
    probs = torch.tensor([[[0.9, 0.3], [0.6, 0.1]]])
    covers, masks = torch.ones(1, 2, 2), torch.tensor([[[1.0, 0.0], [1.0, 0.0]]])
    found = expected_iou(probs.logit()[None], masks, covers)
    assert float(found) == pytest.approx(1.5 / 2.4)
    # Logits of 2 ± 2 count as 2 / sqrt(1 + 4π/8).
    views = torch.tensor([0.0, 4.0]).view(2, 1, 1, 1)
    found = expected_iou(views, torch.ones(1, 1, 1), torch.ones(1, 1, 1))
    assert float(found) == pytest.approx(1 / (1 + math.exp(-2 / math.sqrt(1 + math.pi / 2))))

    # In a box of 4 × 4 cells the ellipse holds all but the corners: 12 cells.
    box = torch.tensor([[0.0, 0.0, 4.0, 4.0]])
    assert float(ellipse_iou(torch.ones(1, 4, 4), box)) == pytest.approx(12 / 16)

    # The left half is 1, the right half −1: colour says all, and the border is the only step.
    colours = torch.ones(1, 1, 4, 4)
    colours[..., 2:] = -1
    masks = (colours > 0).float()[:, 0]
    assert float(colour_separation(masks, colours)) == pytest.approx(1)
    mean = 4 * 2 / 24  # 4 of the 24 pairs of neighbours have a step of 2
    covers = torch.ones(1, 4, 4)
    found = border_contrast(masks, colours, covers)
    assert float(found) == pytest.approx(2 / (2 + mean), abs=1e-5)
    assert float(border_contrast(masks.mT, colours, covers)) == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize("fill", [-1e4, -50.0, 0.0, 50.0, 1e4, math.inf, -math.inf])
@pytest.mark.parametrize("threshold", [0.0, 0.1, 1.0])
def test_extremes_are_finite(fill, threshold):
    boxes = torch.tensor(
        [[0, 0, 32, 32], [6, 6, 26, 26], [9.2, 9.2, 9.3, 30], [5, 5, 5, 5], [-9, -9, -2, -2]]
    )
    logits = torch.full((2, 5, GRID, GRID), fill)
    for images in (torch.zeros(5, 3, 32, 32), torch.rand(5, 3, 50, 70), torch.ones(5, 1, 20, 9)):
        for refined in (None, logits[0]):
            args = logits, torch.full((5,), threshold), boxes.float(), images, refined
            found = mask_quality(*args)
            assert found.isfinite().all() and (found >= 0).all() and (found <= 1).all()
    fine = torch.full((5, 40, 72), fill).half()  # no multiple of the grid
    limits = torch.full((5,), threshold)
    half = mask_quality(logits.half(), limits, boxes.half(), images.half(), fine)
    assert half.dtype == torch.float32 and half.isfinite().all()


def test_no_boxes():
    empty = torch.zeros(2, 0, 64, 64), torch.zeros(0), torch.zeros(0, 4), torch.zeros(0, 3, 64, 64)
    assert mask_quality(*empty).shape == (0,)


def test_every_opinion_counts():
    """Each of these is worse than a sure disc of the box's size and a colour of its own."""
    mask = blob() > 0
    best = float(quality(blob()[None, None], picture(mask)[None]))
    small = blob(radius=4)
    worse = dict(
        unsure=(blob(contrast=0.5), picture(mask)),
        small=(small, picture(small > 0)),
        corner=(blob(radius=6, centre=12), picture(blob(radius=6, centre=12) > 0)),
        same_colour=(blob(), picture(mask) * 0),
        other_border=(blob(), picture(blob(radius=7) > 0)),
    )
    assert best > 0.9
    for name, (logits, image) in worse.items():
        assert float(quality(logits[None, None], image[None])) < best - 0.03, name


@pytest.mark.parametrize("threshold", [0.1, 0.5, 0.8])
def test_disagreement_lowers_it(threshold):
    """Of views with the same mean, so that the mask stays the same."""
    difference = torch.randn(1, 1, GRID, GRID, generator=torch.Generator().manual_seed(0))
    images = picture(blob() > 0)[None]
    found = [
        float(quality(torch.cat([blob() + x, blob() - x]), images, threshold))
        for x in (k * difference for k in (0, 1, 3, 9))
    ]
    assert found == sorted(found, reverse=True) and len({round(x, 4) for x in found}) == 4
    # Without disagreement, another view is no news.
    assert found[0] == pytest.approx(float(quality(blob()[None, None], images, threshold)))


def test_size_and_scale_of_colour_do_not_matter():
    image = picture(blob() > 0, noise=0.3)[None]
    logits = blob()[None, None]
    expected = quality(logits, image)
    large = [x.repeat_interleave(4, 2).repeat_interleave(4, 3) for x in (logits, image)]
    torch.testing.assert_close(quality(*large, box=BOX * 4), expected)
    scaled = 255 * image - torch.tensor([10, 90, 200.0]).view(3, 1, 1)
    torch.testing.assert_close(quality(logits, scaled), expected, atol=1e-4, rtol=0)


def test_mask_of_no_cell_above_the_threshold():
    """It is cut at half of the maximum, and the network's opinion of it is low."""
    image = picture(blob() > 0)[None]
    found = [float(quality(blob(contrast=2)[None, None] + shift, image)) for shift in (0, -8)]
    assert 0.5 < found[1] < found[0] - 0.1


def test_rank_quality():
    ious = np.array([0.2, 0.9, 0.4, 0.6, 0.8])
    figures = rank_quality(np.array([0.1, 0.9, 0.3, 0.3, 0.5]), ious)
    # Ranks 1 5 2.5 2.5 4 against 1 5 2 3 4.
    assert figures.pop("spearman") == pytest.approx(9.5 / math.sqrt(9.5 * 10))
    assert figures == pytest.approx(dict(num=5, miou=0.58, miou_best=0.675, miou_worst=0.2))
    assert math.isnan(rank_quality(np.ones(5), ious)["spearman"])
    none = rank_quality(np.array([]), np.array([]))
    assert none["num"] == 0 and math.isnan(none["miou"]) and math.isnan(none["spearman"])


def test_measure_quality(tmp_path):
    """A crowd, an annotation without ``mask_quality`` and one without a mask."""
    true = np.zeros((40, 50), dtype=bool)
    true[10:30, 10:30] = True
    truth, pred = [], []
    for i, width in enumerate((20, 15, 10, 5, 20, 20)):
        mask = np.zeros_like(true)
        mask[10:30, 10 : 10 + width] = True
        ann = dict(id=7 + i, image_id=3, bbox=[10, 10, 20, 20], area=400, category_id=1, iscrowd=0)
        truth.append(ann | dict(segmentation=encode_mask(true), iscrowd=int(i == 5)))
        pred.append(ann | dict(segmentation=encode_mask(mask), mask_quality=width / 20))
    del pred[4]["mask_quality"], pred[3]["segmentation"]
    rest = dict(
        images=[dict(id=3, file_name="a.jpg", height=40, width=50)],
        categories=[dict(id=1, name="thing")],
    )
    files = tmp_path / "pred.json", tmp_path / "truth.json"
    for file, annotations in zip(files, (pred, truth)):
        write_json(file, rest | dict(annotations=annotations))
    figures = measure_quality(*files)
    expected = dict(num=4, spearman=1, miou=2.25 / 4, miou_best=0.75, miou_worst=0)
    assert figures == pytest.approx(expected)
    tool = [sys.executable, ROOT / "tools/analysis_tools/measure_quality.py", *files]
    done = subprocess.run(tool, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "1.0000" in done.stdout and "0.5625" in done.stdout and "0.7500" in done.stdout
    write_json(tmp_path / "null.json", rest | dict(annotations=[*pred, None]))
    with pytest.raises(ValueError, match=r"annotations\[6\] of .*null.json: annotation is None"):
        measure_quality(tmp_path / "null.json", files[1])
    with pytest.raises(ValueError, match=r"truth\.json has mask_quality"):
        measure_quality(files[1], files[1])
