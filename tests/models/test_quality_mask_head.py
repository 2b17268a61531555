# SPDX-License-Identifier: Apache-2.0
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from mmdet.registry import MODELS
from mmdet.structures.mask import BitmapMasks
from mmengine.config import ConfigDict
from mmengine.structures import InstanceData

from mal_mmdet.models.quality_mask_head import quality_weights

CLASSES, SIDE = 4, 6
SIZES = dict(in_channels=3, conv_out_channels=3, num_convs=1, num_classes=CLASSES)


def head(kind="QualityMaskHead", **options):
    return MODELS.build(dict(type=kind, **SIZES, **options))


def batch(qualities):
    """Two images with 2 and 3 objects, 4 and 5 RoIs in another order than the objects."""
    rng = np.random.default_rng(0)
    gts, results = [], []
    for objects, of_roi in ((2, [1, 0, 1, 1]), (3, [2, 0, 0, 1, 2])):
        labels = torch.from_numpy(rng.integers(0, CLASSES, objects))
        masks = rng.integers(0, 2, (objects, 20, 20), dtype=np.uint8)
        gts.append(InstanceData(labels=labels, masks=BitmapMasks(masks, 20, 20)))
        gts[-1].mask_qualities = torch.tensor(qualities[:objects])
        qualities = qualities[objects:]
        corners = torch.from_numpy(rng.uniform(0, 8, (len(of_roi), 4))).float()
        boxes = corners + torch.tensor([0, 0, 10, 10])
        of_roi = torch.tensor(of_roi)
        results.append(
            SimpleNamespace(
                pos_priors=boxes, pos_assigned_gt_inds=of_roi, pos_gt_labels=labels[of_roi]
            )
        )
    return results, gts, ConfigDict(mask_size=SIDE)


def logits(channels=CLASSES):
    return torch.randn(9, channels, SIDE, SIDE, requires_grad=True)


def naive(preds, labels, targets, weights):
    total = 0.0
    for pred, label, target, weight in zip(preds.tolist(), labels, targets.tolist(), weights):
        cells = []
        for row, wanted in zip(pred[label], target):
            for x, t in zip(row, wanted):
                p = 1 / (1 + math.exp(-x))
                cells.append(-math.log(p if t else 1 - p))
        total += weight * sum(cells) / len(cells)
    return total / sum(weights)


@pytest.mark.parametrize(
    "options, weights",
    [
        (dict(), [0.5, 0.9, 0.2, 1.0, 0.7]),
        (dict(min_quality=0.7), [0, 0.9, 0, 1.0, 0.7]),
        (dict(min_quality=0.7, weighted=False), [0, 1, 0, 1, 1]),
    ],
)
def test_the_loss_is_the_weighted_mean_over_rois(options, weights):
    preds = logits()
    results, gts, cfg = batch([0.5, 0.9, 0.2, 1.0, 0.7])
    found = head(**options, loss_mask=dict(type="CrossEntropyLoss", use_mask=True, loss_weight=3))
    found = found.loss_and_target(preds, results, gts, cfg)
    targets = found["mask_targets"]
    assert targets.shape == (9, SIDE, SIDE) and 0 < targets.mean() < 1
    objects = [1, 0, 1, 1, 4, 2, 2, 3, 4]
    labels = torch.cat([gt.labels for gt in gts])[objects].tolist()
    expected = 3 * naive(preds, labels, targets, [weights[i] for i in objects])
    loss = found["loss_mask"]["loss_mask"]
    assert loss.item() == pytest.approx(expected, rel=1e-5)
    loss.backward()
    learned = preds.grad.flatten(1).abs().sum(1) > 0
    assert learned.tolist() == [weights[i] > 0 for i in objects]


@pytest.mark.parametrize("class_agnostic", [False, True])
@pytest.mark.parametrize("options", [dict(), dict(min_quality=1.0), dict(weighted=False)])
def test_certain_masks_give_the_parents_loss(class_agnostic, options):
    inputs = batch([1.0] * 5)
    ours, stock = logits(1 if class_agnostic else CLASSES), None
    stock = ours.detach().clone().requires_grad_()
    losses = []
    for preds, kind, extra in ((ours, "QualityMaskHead", options), (stock, "FCNMaskHead", {})):
        result = head(kind, class_agnostic=class_agnostic, **extra).loss_and_target(preds, *inputs)
        losses.append(result["loss_mask"]["loss_mask"].sum())
        losses[-1].backward()
    assert losses[0] == losses[1] > 0
    assert torch.allclose(ours.grad, stock.grad, rtol=1e-6, atol=0) and stock.grad.any()


def test_nothing_to_learn_is_a_loss_of_0_with_a_gradient():
    preds = logits()
    results, gts, cfg = batch([0.5, 0.0, 0.2, 0.1, 0.6])
    for kept in (9, 0):
        if kept == 0:
            preds, gts = preds.detach()[:0].requires_grad_(), gts[:1]
            empty = torch.empty(0, dtype=torch.int64)
            results = [
                SimpleNamespace(
                    pos_priors=torch.empty(0, 4), pos_assigned_gt_inds=empty, pos_gt_labels=empty
                )
            ]
        result = head(min_quality=0.7).loss_and_target(preds, results, gts, cfg)
        loss = result["loss_mask"]["loss_mask"]
        loss.backward()
        assert loss == 0 and preds.grad.shape == preds.shape and not preds.grad.any()


def test_weights_of_qualities():
    qualities = torch.tensor([0.0, 0.6999, 0.7, 1.0])
    expected = {(0.0, True): qualities.tolist(), (0.0, False): [1, 1, 1, 1]}
    expected |= {(0.7, True): [0, 0, 0.7, 1], (0.7, False): [0, 0, 1, 1]}
    for options, weights in expected.items():
        assert torch.equal(quality_weights(qualities, *options), torch.tensor(weights).float())


def test_bad_input_is_refused():
    results, gts, cfg = batch([1.0] * 5)
    del gts[1].mask_qualities
    with pytest.raises(ValueError, match=r"no mask_qualities: .* needs MaskQualityDataset"):
        head().loss_and_target(logits(), results, gts, cfg)
    for value in (-0.1, 1.5, float("nan")):
        with pytest.raises(ValueError, match=f"min_quality is {value}; expected"):
            head(min_quality=value)
    for loss in (
        dict(type="CrossEntropyLoss", use_sigmoid=True),
        dict(type="CrossEntropyLoss", use_mask=True, class_weight=[1.0] * SIDE),
        dict(type="DiceLoss"),
    ):
        with pytest.raises(ValueError, match="only CrossEntropyLoss with use_mask=True"):
            head(loss_mask=loss)
