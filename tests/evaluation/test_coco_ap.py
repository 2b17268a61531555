# SPDX-License-Identifier: Apache-2.0
import json
import sys

import numpy as np
import pytest
from pycocotools import mask as mask_utils

from mal_mmdet.evaluation import boundary_iou, coco_ap
from mal_mmdet.labeling import encode_mask

SIZE = 120


def rectangle(x0, y0, x1, y1):
    mask = np.zeros((SIZE, SIZE), dtype=bool)
    mask[y0:y1, x0:x1] = True
    return mask


def box_of(mask):
    (y, x) = (axis.nonzero()[0] for axis in (mask.any(1), mask.any(0)))
    return [int(x[0]), int(y[0]), int(x[-1] - x[0] + 1), int(y[-1] - y[0] + 1)]


def write_files(folder, truths, detections):
    """Truths: masks of image 1; detections: (mask, score, category); all objects are of class 1."""
    annotations = [
        dict(
            id=i + 1,
            image_id=1,
            category_id=1,
            bbox=box_of(mask),
            area=int(mask.sum()),
            iscrowd=0,
            segmentation=encode_mask(mask),
        )
        for i, mask in enumerate(truths)
    ]
    truth = dict(
        images=[dict(id=1, file_name="1.jpg", width=SIZE, height=SIZE)],
        categories=[dict(id=1, name="a"), dict(id=2, name="b")],
        annotations=annotations,
    )
    results = [
        dict(
            image_id=1,
            category_id=category,
            score=score,
            bbox=box_of(mask),
            segmentation=encode_mask(mask),
        )
        for mask, score, category in detections
    ]
    (folder / "truth.json").write_text(json.dumps(truth))
    (folder / "results.json").write_text(json.dumps(results))
    return folder / "truth.json", folder / "results.json"


def naive_ap(ious, scores, threshold):
    """AP of one class in one image from the IoU of every detection (row) and truth (column)."""
    free, hits = set(range(ious.shape[1])), []
    for i in np.argsort(-np.asarray(scores)):
        best = max(free, key=lambda j: ious[i, j], default=None)
        hits.append(best is not None and ious[i, best] >= threshold)
        if hits[-1]:
            free.remove(best)
    found = np.cumsum(hits)
    precision, recall = found / np.arange(1, len(hits) + 1), found / ious.shape[1]
    levels = np.linspace(0, 1, 101)
    return np.mean([max(precision[recall >= r - 1e-12], default=0) for r in levels])


def scene():
    """Three objects, four detections of different precision, one of them false."""
    truths = [rectangle(5, 5, 45, 45), rectangle(60, 5, 100, 40), rectangle(10, 60, 70, 110)]
    truths[2][80:90, 30:40] = False
    detections = [
        (rectangle(7, 5, 46, 45), 0.9, 1),
        (rectangle(85, 85, 110, 110), 0.8, 1),
        (rectangle(60, 8, 95, 42), 0.7, 1),
        (rectangle(10, 60, 72, 112), 0.6, 1),
    ]
    return truths, detections


def box_iou(mask_a, mask_b):
    return mask_utils.iou([box_of(mask_a)], [box_of(mask_b)], [0])[0, 0]


def mask_iou(mask_a, mask_b):
    return (mask_a & mask_b).sum() / (mask_a | mask_b).sum()


def lesser_iou(mask_a, mask_b):
    return min(mask_iou(mask_a, mask_b), boundary_iou(mask_a, mask_b))


@pytest.mark.parametrize(
    ("iou_type", "iou"), [("segm", mask_iou), ("bbox", box_iou), ("boundary", lesser_iou)]
)
def test_against_a_naive_ap(iou_type, iou, tmp_path):
    truths, detections = scene()
    figures = coco_ap(*write_files(tmp_path, truths, detections), iou_type)
    ious = np.array([[iou(mask, truth) for truth in truths] for mask, _, _ in detections])
    scores = [score for _, score, _ in detections]
    thresholds = np.linspace(0.5, 0.95, 10)
    expected = [naive_ap(ious, scores, threshold) for threshold in thresholds]
    assert figures["ap50"] == pytest.approx(expected[0], abs=1e-6)
    assert figures["ap75"] == pytest.approx(expected[5], abs=1e-6)
    assert figures["ap"] == pytest.approx(np.mean(expected), abs=1e-6)
    assert 0.05 < figures["ap"] < 0.95
    assert np.isnan(figures["ap_small"]) and figures["ap_medium"] > 0  # no object is small


def test_the_three_measures_differ(tmp_path):
    files = write_files(tmp_path, *scene())
    segm, boundary, bbox = (coco_ap(*files, kind)["ap"] for kind in ("segm", "boundary", "bbox"))
    assert boundary < segm and segm != bbox


def test_size_is_the_masks_not_its_boxs(tmp_path):
    """A thin diagonal in a large box is a small object."""
    thin = np.eye(SIZE, dtype=bool)
    files = write_files(tmp_path, [thin], [(thin, 0.9, 1)])
    figures = coco_ap(*files, "segm")
    assert figures["ap_small"] == pytest.approx(1)
    assert np.isnan(figures["ap_large"]) and np.isnan(figures["ap_medium"])


def test_perfect_nothing_and_the_wrong_class(tmp_path):
    truths, _ = scene()
    perfect = [(mask, 0.5, 1) for mask in truths]
    assert coco_ap(*write_files(tmp_path, truths, perfect), "boundary")["ap"] == pytest.approx(1)
    assert coco_ap(*write_files(tmp_path, truths, perfect[:1]), "segm")["ap"] < 0.5
    wrong = [(mask, 0.5, 2) for mask in truths]
    assert coco_ap(*write_files(tmp_path, truths, wrong), "segm")["ap"] == 0
    nothing = coco_ap(*write_files(tmp_path, truths, []), "segm")
    assert nothing["ap"] == nothing["ap50"] == nothing["ap_medium"] == 0
    assert np.isnan(nothing["ap_small"]) and np.isnan(nothing["ap_large"])


def test_evaluators_that_disagree_and_an_unknown_measure(tmp_path, monkeypatch):
    files = write_files(tmp_path, *scene())
    with pytest.raises(ValueError, match="'mask', expected 'segm', 'bbox' or 'boundary'"):
        coco_ap(*files, "mask")
    truth = json.loads(files[0].read_text())
    truth["annotations"][0]["id"] = 0
    (tmp_path / "zero.json").write_text(json.dumps(truth))
    with pytest.raises(ValueError, match=r"zero\.json has an annotation with the id 0, for which"):
        coco_ap(tmp_path / "zero.json", files[1], "segm")
    module = sys.modules[coco_ap.__module__]

    class Strict(module.COCOeval):
        def summarize(self):
            super().summarize()
            self.stats[0] += 1e-3

    monkeypatch.setattr(module, "COCOeval", Strict)
    with pytest.raises(RuntimeError, match=r"two evaluators disagree on .*results.json against"):
        coco_ap(*files, "segm")
