# SPDX-License-Identifier: Apache-2.0
import math

import numpy as np
import pytest
import torch
from mmengine.runner import Runner
from pycocotools import mask as mask_utils

from mal_mmdet.evaluation import ClusteringScoreMetric, clustering_score
from mal_mmdet.labeling import encode_mask, read_coco, write_json
from mal_mmdet.structures import mask_on_cells
from tests.conftest import tiny_config


def naive_score(features, foreground):
    vectors = features.flatten(1).T.double().tolist()
    sides = foreground.flatten().tolist()
    centres = {}
    for side in (True, False):
        members = [v for v, s in zip(vectors, sides) if s == side]
        centre = [sum(column) / len(members) for column in zip(*members)]
        centres[side] = [c / math.hypot(*centre) for c in centre]
    total = 0.0
    for vector, side in zip(vectors, sides):
        norm = math.hypot(*vector)
        total += sum((v / norm - c) ** 2 for v, c in zip(vector, centres[side]))
    return total / len(vectors)


def test_score_against_plain_loops():
    features = torch.randn(5, 4, 6) + 0.5
    foreground = torch.rand(4, 6) > 0.6
    assert clustering_score(features, foreground) == pytest.approx(
        naive_score(features, foreground)
    )


def test_score_looks_at_directions_of_both_sides():
    features = torch.zeros(2, 2, 2)
    features[0, 0], features[1, 1] = torch.tensor([1.0, 3.0]), torch.tensor([2.0, 5.0])
    foreground = torch.tensor([[True, True], [False, False]])
    assert clustering_score(features, foreground) == pytest.approx(0)
    # One side holds two opposite pairs of directions, 45° from their centre.
    mixed = torch.tensor([[True, False], [True, False]])
    features = torch.tensor([[[1.0, 1.0], [0.0, 0.0]], [[0.0, 0.0], [1.0, 1.0]]])
    assert clustering_score(features, mixed) == pytest.approx(2 - math.sqrt(2))


@pytest.mark.parametrize(
    "foreground, words",
    [
        (torch.ones(3, 3) > 0, "foreground and of background"),
        (torch.zeros(3, 3) > 0, "foreground and of background"),
        (torch.eye(4) > 0, r"\(2, 3, 3\) and the foreground \(4, 4\)"),
    ],
)
def test_score_refuses(foreground, words):
    with pytest.raises(ValueError, match=words):
        clustering_score(torch.ones(2, 3, 3), foreground)


@pytest.fixture
def metric(tmp_path):
    def mask(*window):
        array = np.zeros((16, 16), dtype=bool)
        y0, y1, x0, x1 = window
        array[y0:y1, x0:x1] = True
        return encode_mask(array)

    masks = {1: mask(0, 8, 0, 16), 2: mask(3, 4, 3, 4), 3: mask(0, 16, 0, 16)}
    annotations = [
        dict(id=i, image_id=1, category_id=1, bbox=[0, 0, 16, 16], segmentation=m)
        for i, m in masks.items()
    ]
    annotations.append(dict(id=9, image_id=1, category_id=1, iscrowd=1, bbox=[0, 0, 1, 1]))
    coco = dict(
        images=[dict(id=1, width=16, height=16)],
        annotations=annotations,
        categories=[dict(id=1, name="a")],
    )
    write_json(tmp_path / "truth.json", coco)
    return ClusteringScoreMetric(str(tmp_path / "truth.json"))


def sample(ann_ids, features):
    crops = torch.tensor([[0, 0, 16, 16]] * len(ann_ids))
    return dict(
        pred_instances=dict(ann_ids=ann_ids)
        | ({} if features is None else dict(features=features)),
        gt_instances=dict(crop_bboxes=crops),
    )


def test_metric_counts_boxes_without_a_side(metric):
    features = torch.randn(3, 7, 4, 4)
    metric.process({}, [sample([1, 2, 3], features), sample([], None)])
    found = metric.evaluate(2)
    foreground = torch.zeros(4, 4, dtype=torch.bool)
    foreground[:2] = True
    score = pytest.approx(naive_score(features[0], foreground))
    assert found == {"clustering/score": score, "clustering/num": 1, "clustering/num_skipped": 2}


def test_metric_says_what_is_missing(metric):
    with pytest.raises(ValueError, match=r"set model\.return_features=True"):
        metric.process({}, [sample([1], None)])
    with pytest.raises(ValueError, match="annotation 9 has no human mask"):
        metric.process({}, [sample([9], torch.ones(1, 2, 4, 4))])
    with pytest.raises(ValueError, match="CocoBoxDataset"):
        metric.process({}, [dict(pred_instances={}, gt_instances={})])


@pytest.mark.parametrize("source", ["student", "teacher"])
def test_the_test_loop_scores_every_box(demo, tmp_path, source):
    """By the options that the docstring names; against the encoder run by hand."""
    cfg = tiny_config(demo, tmp_path, **{"model.label_source": source})
    cfg.merge_from_dict(
        {"model.return_features": True, "test_evaluator.type": "ClusteringScoreMetric"}
    )
    runner = Runner.from_cfg(cfg)
    runner.model.init_weights()
    with torch.no_grad():
        for p in runner.model.teacher.parameters():
            p.mul_(1.3)
    found = runner.test()
    truth = read_coco(demo / "instances_val.json")
    assert found["clustering/num"] + found["clustering/num_skipped"] == len(truth["annotations"])
    assert found["clustering/num"] > len(truth["annotations"]) / 2

    encoder = getattr(runner.model, source).backbone
    masks = {a["id"]: a["segmentation"] for a in truth["annotations"]}
    scores = []
    for batch in runner.test_dataloader:
        data = runner.model.data_preprocessor(batch)
        instances = data["data_samples"][0].gt_instances
        with torch.no_grad():
            maps = encoder(data["inputs"])[-1]
        for ann_id, crop, features in zip(instances.ann_ids, instances.crop_bboxes, maps):
            mask = torch.from_numpy(mask_utils.decode(masks[ann_id])) > 0
            foreground = mask_on_cells(mask, crop, features.shape[1:])
            if 0 < foreground.sum() < foreground.numel():
                scores.append(naive_score(features, foreground))
    assert found["clustering/score"] == pytest.approx(np.mean(scores), rel=1e-5)


def test_predictions_hold_no_features_unless_asked_for(demo, tmp_path):
    cfg = tiny_config(demo, tmp_path, **{"test_evaluator.type": "ClusteringScoreMetric"})
    with pytest.raises(ValueError, match=r"set model\.return_features=True"):
        Runner.from_cfg(cfg).test()
