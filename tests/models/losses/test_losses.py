# SPDX-License-Identifier: Apache-2.0
import pytest
import torch

from mal_mmdet.models import CRFLoss, MILLoss
from tests.models.losses.test_color_model import naive_color_log_odds


def naive_dice(a, b):
    a, b = a.flatten().tolist(), b.flatten().tolist()
    overlap = sum(p * q for p, q in zip(a, b))
    return 1 - 2 * overlap / (sum(p * p for p in a) + 1e-3 + sum(q * q for q in b) + 1e-3)


def example():
    probs = torch.rand(3, 6, 8, dtype=torch.float64)
    box = torch.zeros(3, 6, 8, dtype=torch.float64)
    box[:, 1:4, 2:7] = 1
    box[:, 4, 2:7] = 0.25
    return probs, box


def test_mil_loss_against_bags():
    probs, box = example()
    total = 0.0
    for p, t in zip(probs, box):
        rows = [max(row) for row in p.tolist()], [max(row) for row in t.tolist()]
        columns = [max(c) for c in p.T.tolist()], [max(c) for c in t.T.tolist()]
        total += naive_dice(*map(torch.tensor, rows)) + naive_dice(*map(torch.tensor, columns))
    found = MILLoss(loss_weight=4.0)(probs, box)
    assert abs(found.item() - 4 * total / 3) < 1e-6


def test_mil_loss_is_least_for_masks_that_touch_all_four_sides():
    _, box = example()
    box = (box == 1).double()
    diamond = torch.zeros_like(box)
    for row, column in ((1, 4), (2, 2), (2, 3), (2, 5), (2, 6), (3, 4)):
        diamond[:, row, column] = 1
    loss = MILLoss()
    assert loss(diamond, box) < 0.01
    diamond[:, 1, 4] = 0  # no longer touches the top
    assert loss(diamond, box) > 0.1


def test_crf_loss_is_dice_to_the_mean_field_of_the_average(monkeypatch):
    probs, box = example()
    teacher = torch.rand_like(probs)
    target = torch.rand_like(probs) > 0.5
    seen = {}

    def fake(average, box_masks, images, **options):
        seen.update(average=average, options=options)
        return target

    monkeypatch.setattr("mal_mmdet.models.losses.crf_loss.mean_field", fake)
    loss = CRFLoss(loss_weight=0.5, zeta=0.2, omega=2.0, kernel_size=5, num_steps=7)
    probs.requires_grad_()
    found = loss(probs, teacher, box, torch.zeros(3, 3, 6, 8))
    expected = sum(naive_dice(p, t) for p, t in zip(probs.detach(), target.double())) / 3
    assert abs(found.item() - 0.5 * expected) < 1e-6
    torch.testing.assert_close(seen["average"], (probs.detach() + teacher) / 2)
    assert not seen["average"].requires_grad
    assert seen["options"] == dict(zeta=0.2, omega=2.0, kernel_size=5, num_steps=7)
    found.backward()
    assert probs.grad.abs().sum() > 0


@pytest.mark.parametrize("teacher_weight", [0.0, 0.3])
def test_share_of_the_teacher(monkeypatch, teacher_weight):
    probs, box = example()
    teacher, seen = torch.rand_like(probs), []
    name = "mal_mmdet.models.losses.crf_loss.mean_field"
    monkeypatch.setattr(name, lambda q, *a, **k: seen.append(q) or q > 0.5)
    CRFLoss(teacher_weight=teacher_weight)(probs, teacher, box, torch.zeros(3, 3, 6, 8))
    expected = (1 - teacher_weight) * probs + teacher_weight * teacher
    torch.testing.assert_close(seen[0], expected)


def test_colors_join_the_probabilities_before_the_mean_field(monkeypatch):
    probs, box = example()
    teacher, seen = torch.rand_like(probs), []
    images = torch.randint(0, 2, (3, 3, 6, 8)).float()
    name = "mal_mmdet.models.losses.crf_loss.mean_field"
    monkeypatch.setattr(name, lambda q, *a, **k: seen.append(q) or q > 0.5)
    CRFLoss(color_weight=1.5)(probs, teacher, box, images)
    average = (probs.detach() + teacher) / 2
    odds = torch.stack([naive_color_log_odds(*crop) for crop in zip(average * box, images)])
    expected = (average / (1 - average)).log() + 1.5 * odds
    assert odds.abs().max() > 0.1
    torch.testing.assert_close(seen[0], expected.sigmoid(), atol=1e-4, rtol=0)


def test_colors_overrule_certain_probabilities(monkeypatch):
    seen = []
    name = "mal_mmdet.models.losses.crf_loss.mean_field"
    monkeypatch.setattr(name, lambda q, *a, **k: seen.append(q) or q > 0.5)
    certain, images = torch.zeros(1, 8, 8), torch.zeros(1, 3, 8, 8)
    certain[:, :4], images[:, :, 4:] = 1.0, 1.0
    images[:, :, 0, 0], images[:, :, 7, 7] = 1.0, 0.0  # in the wrong half
    CRFLoss(color_weight=4.0)(certain, certain, torch.ones(1, 8, 8), images)
    assert seen[0][0, 0, 0] < 0.5 < seen[0][0, 7, 7]
    assert (seen[0][0, :4].flatten()[1:] > 0.99).all()
