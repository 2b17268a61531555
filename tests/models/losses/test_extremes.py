# SPDX-License-Identifier: Apache-2.0
"""Losses at the ends of their range: what they are there is known."""

import pytest
import torch
from mmdet.registry import MODELS
from mmdet.structures import DetDataSample
from mmengine.structures import InstanceData
from torch import nn

from mal_mmdet.models import CRFLoss, MILLoss
from mal_mmdet.models.losses import mean_field
from mal_mmdet.structures import box_masks
from tests.conftest import tiny_config
from tests.models.losses.test_losses import naive_dice

SIZE = 16
BOXES = {
    "pixel": [7.0, 5.0, 8.0, 6.0],
    "part of a pixel": [7.3, 5.2, 7.5, 5.9],
    "whole": [0.0, 0.0, SIZE, SIZE],
    "line": [0.0, 9.0, SIZE, 10.0],
    "corner": [SIZE - 1.0, SIZE - 1.0, SIZE, SIZE],
}
HALF = 65504.0  # the largest float16


def box_of(name):
    return box_masks(torch.tensor([BOXES[name]]), (SIZE, SIZE))


@pytest.mark.parametrize("box", BOXES)
@pytest.mark.parametrize("value", [0.0, 1.0])
def test_mil_loss_of_constant_predictions(box, value):
    target = box_of(box)
    probs = torch.full_like(target, value, requires_grad=True)
    loss = MILLoss(loss_weight=4.0)(probs, target)
    bags = [target[0].amax(1), target[0].amax(0)]
    expected = sum(naive_dice(torch.full((SIZE,), value), bag) for bag in bags)
    assert loss.item() == pytest.approx(4 * expected, abs=1e-4)
    loss.backward()
    # The gradient of a bag goes to its pixels, in equal parts if they are alike.
    gradient = torch.zeros(SIZE, SIZE)
    for bag, along in zip(bags, (gradient, gradient.T)):
        p = torch.full((SIZE,), value, requires_grad=True)
        numerator, denominator = 2 * (p * bag).sum(), (p**2).sum() + (bag**2).sum() + 2e-3
        (1 - numerator / denominator).backward()
        along += (4 * p.grad / SIZE)[:, None]
    torch.testing.assert_close(probs.grad[0], gradient)
    assert value or gradient.sum() < 0  # nothing predicted: more is better


@pytest.mark.parametrize("box", BOXES)
@pytest.mark.parametrize("value", [0.0, 1.0])
def test_crf_loss_of_constant_predictions_on_one_colour(box, value):
    """Nothing stays nothing; everything becomes the box, as nothing else tells pixels apart."""
    target = box_of(box)
    probs = torch.full_like(target, value, requires_grad=True)
    images = torch.full((1, 3, SIZE, SIZE), 0.7)
    masks = mean_field(probs.detach(), target, images)
    if not value:
        assert not masks.any()
    elif box == "whole":
        assert masks.all()
    else:
        assert not masks[target == 0].any()
    loss = CRFLoss(loss_weight=0.5)(probs, torch.full_like(target, value), target, images)
    assert loss.item() == pytest.approx(0.5 * naive_dice(probs[0], masks[0].float()), abs=1e-5)
    loss.backward()
    assert torch.isfinite(probs.grad).all()
    assert value or not probs.grad.any()  # nothing to agree upon pulls nowhere


def naive_field_of_one_colour(probs, box, omega, steps):
    """The method as stated, by loops over pixels, where all weights are ω."""
    inside = (probs * box).clamp(0.1, 0.9).double()
    for _ in range(steps):
        old, inside = inside, torch.empty_like(inside)
        for y in range(SIZE):
            for x in range(SIZE):
                near = old[max(y - 1, 0) : y + 2, max(x - 1, 0) : x + 2]
                a1 = near.log().sum() * omega + (1 - omega) * old[y, x].log()
                a0 = (1 - near).log().sum() * omega + (1 - omega) * (1 - old[y, x]).log()
                share = torch.sigmoid(a1 - a0 + box[y, x].double().log())
                inside[y, x] = share.clamp(0.1, 0.9)
        if torch.equal(old, inside):
            break
    return inside > 0.5


@pytest.mark.parametrize("omega", [0.5, 1.0, 2.0])
def test_mean_field_on_one_colour_is_stable(omega):
    """Random probabilities: soon a fixed point, where rounding moves nothing in many more steps."""
    probs, target = torch.rand(1, SIZE, SIZE) * 0.6 + 0.25, torch.zeros(1, SIZE, SIZE)
    target[:, 2:14, 3:12] = 1
    images = torch.full((1, 3, SIZE, SIZE), -1.3)
    found = mean_field(probs, target, images, omega=omega)
    assert torch.equal(found[0], naive_field_of_one_colour(probs[0], target[0], omega, 12))
    assert found.any() and not found[target == 0].any()
    for steps in (101, 150):
        assert torch.equal(mean_field(probs, target, images, omega=omega, num_steps=steps), found)


class Constant(nn.Module):
    """A network that always says the same."""

    def __init__(self, logits):
        super().__init__()
        self.logits = nn.Parameter(logits)

    def forward(self, crops, areas):
        return self.logits + 0


@pytest.mark.parametrize("box", BOXES)
@pytest.mark.parametrize("name", ["+", "-", "+-", "inf"])
def test_logits_at_the_limits_of_half_precision(demo, tmp_path, box, name):
    """As autocast hands them to the losses: as sure as can be, and without gradient."""
    model = MODELS.build(tiny_config(demo, tmp_path).model)
    model.mil_loss.warmup_iters = model.crf_loss.warmup_iters = 0
    logits = torch.full((1, SIZE, SIZE), -HALF)
    if name == "+":
        logits *= -1
    elif name == "+-":
        logits[:, :, : SIZE // 2] *= -1
    elif name == "inf":
        logits[:, :, : SIZE // 2] = torch.inf
    model.student, model.teacher = (Constant(logits.half()) for _ in range(2))
    crops = torch.full((1, 3, 2 * SIZE, 2 * SIZE), 0.4)
    instances = InstanceData(
        bboxes=2 * torch.tensor([BOXES[box]]), areas=torch.tensor([float(SIZE)])
    )
    with torch.autocast("cpu", torch.bfloat16):
        samples = [DetDataSample(gt_instances=instances)]
        losses = model(dict(student=crops, teacher=crops), samples, mode="loss")
    probs, target = (logits > 0).float(), box_of(box)
    bags = [(x[0].amax(1), x[0].amax(0)) for x in (probs, target)]
    mil = sum(naive_dice(p, t) for p, t in zip(*bags))
    masks = mean_field(probs, target, crops[..., ::2, ::2], **model.crf_loss.mean_field_cfg)
    weights = model.mil_loss.loss_weight, model.crf_loss.loss_weight
    assert losses["loss_mil"].dtype == losses["loss_crf"].dtype == torch.float32
    assert losses["loss_mil"].item() == pytest.approx(weights[0] * mil, abs=1e-3)
    crf = weights[1] * naive_dice(probs[0], masks[0].float())
    assert losses["loss_crf"].item() == pytest.approx(crf, abs=1e-3)
    sum(losses.values()).backward()
    assert torch.equal(model.student.logits.grad, torch.zeros_like(model.student.logits))
