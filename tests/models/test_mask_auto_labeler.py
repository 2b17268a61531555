# SPDX-License-Identifier: Apache-2.0
import importlib
import pickle

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from mmdet.registry import MODELS
from mmdet.structures import DetDataSample
from mmengine.config import Config
from mmengine.logging import MessageHub
from mmengine.structures import InstanceData

from mal_mmdet.datasets.transforms.formatting import no_crops
from mal_mmdet.labeling import arrived, mask_window
from mal_mmdet.models.mask_auto_labeler import warmup_factor
from tests.conftest import ROOT, tiny_config

MODULE = importlib.import_module("mal_mmdet.models.mask_auto_labeler")
SIZE = 32


@pytest.fixture
def model(demo, tmp_path):
    model = MODELS.build(tiny_config(demo, tmp_path).model)
    model.init_weights()
    return model


def training_batch(number=3):
    inputs = {view: torch.randn(number, 3, SIZE, SIZE) for view in ("student", "teacher")}
    samples = []
    for i in range(number):
        box = torch.tensor([[4.0 + i, 6.0, 25.0, 28.0 - i]])
        instances = InstanceData(bboxes=box, areas=torch.tensor([(10.0 + 60 * i) ** 2]))
        samples.append(DetDataSample(gt_instances=instances))
    return inputs, samples


def image_sample(boxes, crops, shape=(50, 60)):
    boxes, crops = torch.tensor(boxes, dtype=torch.float32), torch.tensor(crops)
    instances = InstanceData(
        ori_bboxes=boxes,
        crop_bboxes=crops,
        areas=(boxes[:, 2:] - boxes[:, :2]).prod(1),
        labels=torch.zeros(len(boxes), dtype=torch.int64),
    )
    return DetDataSample(gt_instances=instances, metainfo=dict(ori_shape=shape))


def test_teacher_starts_as_the_student_and_has_no_gradient(model):
    for s, t in zip(model.student.parameters(), model.teacher.parameters()):
        assert torch.equal(s, t) and s is not t and not t.requires_grad
    model.train()
    assert model.student.training and not model.teacher.training
    inputs, samples = training_batch()
    sum(model(inputs, samples, mode="loss").values()).backward()
    assert all(p.grad is None for p in model.teacher.parameters())
    assert any(p.grad.abs().sum() > 0 for p in model.student.parameters())


def test_loss_wires_views_boxes_and_both_losses(model, monkeypatch):
    """The loss functions get: p of the student view, pᵗ of the teacher view, t, the image."""
    inputs, samples = training_batch()
    areas = torch.cat([s.gt_instances.areas for s in samples])
    seen = {}
    monkeypatch.setattr(model.mil_loss, "forward", lambda *a: seen.update(mil=a) or a[0].sum())
    monkeypatch.setattr(model.crf_loss, "forward", lambda *a: seen.update(crf=a) or a[0].sum())
    with torch.no_grad():
        model.teacher.decoder.instance_head[0].bias += 1  # no longer equal to the student
    losses = model(inputs, samples, mode="loss")
    assert set(losses) == {"loss_mil", "loss_crf"}
    probs, teacher_probs, targets, images = seen["crf"]
    torch.testing.assert_close(probs, model.student(inputs["student"], areas).sigmoid())
    torch.testing.assert_close(teacher_probs, model.teacher(inputs["teacher"], areas).sigmoid())
    assert torch.equal(seen["mil"][0], probs) and torch.equal(seen["mil"][1], targets)
    assert probs.shape == targets.shape == (3, 16, 16)
    torch.testing.assert_close(images, F.avg_pool2d(inputs["student"], 2))
    # Box of the first crop, at half resolution: columns 2 … 12.5, rows 3 … 14.
    assert targets[0, 5, 2] == 1 and targets[0, 5, 12] == 0.5 and targets[0, 5, 1] == 0
    assert targets[0, 3, 5] == 1 and targets[0, 13, 5] == 1 and targets[0, 14, 5] == 0


def test_a_teacher_in_the_mirror_sees_the_same_places(model, monkeypatch):
    """A student that answers with where it is in the crop has no teacher that agrees."""
    inputs, samples = training_batch()
    seen = []
    monkeypatch.setattr(model.crf_loss, "forward", lambda *a: seen.append(a) or a[0].sum())
    model(inputs, samples, mode="loss")
    model.mirror_teacher = True
    model(inputs, samples, mode="loss")
    mirrored = dict(inputs, teacher=inputs["teacher"].flip(3))
    model.mirror_teacher = False
    model(mirrored, samples, mode="loss")
    (probs, straight, *_), (same, turned_back, *_), (_, turned, *_) = seen
    torch.testing.assert_close(probs, same)
    torch.testing.assert_close(turned_back, turned.flip(2))
    assert (turned_back - straight).abs().max() > 1e-4


def test_a_mirrored_student_learns_the_mean_of_both_views(model, monkeypatch):
    inputs, samples = training_batch()
    seen = []
    monkeypatch.setattr(model.mil_loss, "forward", lambda *a: seen.append(a) or a[0].sum())
    model(inputs, samples, mode="loss")
    model(dict(inputs, student=inputs["student"].flip(3)), samples, mode="loss")
    model.mirror_student = True
    losses = model(inputs, samples, mode="loss")
    (straight, boxes), (turned, _), (mean, same_boxes) = seen
    torch.testing.assert_close(mean, (straight + turned.flip(2)) / 2)
    assert torch.equal(boxes, same_boxes) and (mean - straight).abs().max() > 1e-4
    sum(losses.values()).backward()
    assert all(p.grad is None for p in model.teacher.parameters())


def test_losses_stay_float32_under_amp(model):
    inputs, samples = training_batch()
    with torch.autocast("cpu", torch.bfloat16):
        losses = model(inputs, samples, mode="loss")
    assert all(loss.dtype == torch.float32 and loss.isfinite() for loss in losses.values())


@pytest.mark.parametrize("epoch, iteration, expected", [(0, 0, 0), (0, 25, 0.25), (0, 200, 1)])
def test_warmup_rises_in_the_first_epoch(epoch, iteration, expected):
    hub = MessageHub.get_instance(f"warmup-{iteration}")
    hub.update_info("epoch", epoch)
    hub.update_info("iter", iteration)
    assert warmup_factor(100) == expected
    assert warmup_factor(0) == 1
    hub.update_info("epoch", 1)  # and so it stays for other tests of this process
    assert warmup_factor(100) == 1


def test_predict_puts_masks_into_the_image_frame(model, monkeypatch):
    """Logits that say "left half of the crop" become the left half of each expanded box."""
    logits = torch.full((2, 16, 16), -9.0)
    logits[:, :, :8] = 9.0
    monkeypatch.setattr(model, "view_logits", lambda crops, areas: logits[None, : len(crops)])
    boxes, crops = [[10, 10, 30, 40], [-5, 20, 15, 60]], [[8, 6, 32, 44], [-8, 14, 18, 66]]
    sample = image_sample(boxes, crops)
    (result,) = model(torch.zeros(2, 3, SIZE, SIZE), [sample], mode="predict")
    pred = result.pred_instances
    assert pred.masks.shape == (2, 50, 60) and pred.masks.dtype == torch.bool
    expected = torch.zeros(2, 50, 60, dtype=torch.bool)
    expected[0, 10:40, 10:20] = True  # the middle of [8, 32] is 20
    expected[1, 20:50, 0:5] = True  # the middle of [−8, 18] is 5; clipped to the image
    # The halves meet in one blurred column.
    assert (pred.masks ^ expected).sum((1, 2)).max() <= 30
    assert (pred.scores > 0.9).all()
    torch.testing.assert_close(pred.bboxes, torch.tensor(boxes, dtype=torch.float32))


def test_predictions_without_masks_hold_what_masks_are_made_of(model):
    model.thresholds = [0.1, 0.2, 0.3]
    samples = [image_sample([[10, 10, 30, 40]], [[8, 6, 32, 44]]) for _ in range(2)]
    crop = torch.randn(1, 3, SIZE, SIZE)
    (pasted,) = model(crop, samples[:1], mode="predict")
    model.paste_masks = False
    (bare,) = model(crop, samples[1:], mode="predict")
    assert "masks" not in bare.pred_instances and "masks" in pasted.pred_instances
    assert "mask_probs" not in pasted.pred_instances
    torch.testing.assert_close(bare.pred_instances.thresholds, torch.tensor([0.1]))
    pred = bare.pred_instances
    assert pred.mask_probs.shape == (1, SIZE, SIZE) and 0 <= float(pred.mask_quality) <= 1
    window = mask_window(
        pred.mask_probs[0].numpy(), [8, 6, 32, 44], [10, 10, 30, 40], 0.1, (50, 60)
    )
    mask = pasted.pred_instances.masks[0]
    assert np.array_equal(mask[10:40, 10:30].numpy(), window.mask)
    assert float(pasted.pred_instances.scores) == pytest.approx(window.score)


def test_crops_of_several_margins_are_averaged_in_the_frame_of_the_first(model, monkeypatch):
    """A network that sees the object in every crop sees it at one place of the image."""
    frames = torch.tensor([[[8, 6, 32, 44], [4, 0, 36, 50], [2, -3, 38, 53]]])
    seen = []

    def logits_of(crops, areas):
        x0, y0, x1, y1 = frames[0, len(seen)].tolist()
        seen.append(crops)
        x = torch.linspace(x0, x1, 65)[:-1] + (x1 - x0) / 128
        y = torch.linspace(y0, y1, 65)[:-1] + (y1 - y0) / 128
        inside = (x[None, :] > 16) & (x[None, :] < 26) & (y[:, None] > 20)
        return torch.where(inside, 9.0, -9.0)[None, None]

    monkeypatch.setattr(model, "view_logits", logits_of)
    sample = image_sample([[10, 10, 30, 40]], [[8, 6, 32, 44]])
    sample.gt_instances.view_bboxes = frames
    crops = torch.randn(1, 3, 3, SIZE, SIZE)
    judged, judge = [], MODULE.mask_quality
    monkeypatch.setattr(MODULE, "mask_quality", lambda *a: judged.append(a[3]) or judge(*a))
    model.thresholds, model.return_features = 0.5, True
    (result,) = model(crops, [sample], mode="predict")
    assert torch.equal(judged[0], crops[:, 0])
    features = model.student.backbone(crops[:, 0])[-1]
    torch.testing.assert_close(result.pred_instances.features, features)
    assert all(torch.equal(crop, crops[:, i]) for i, crop in enumerate(seen)) and len(seen) == 3
    expected = torch.zeros(50, 60, dtype=torch.bool)
    expected[20:40, 16:26] = True
    assert (result.pred_instances.masks[0] ^ expected).sum() <= 20  # of a border of 50
    assert result.pred_instances.crop_bboxes.tolist() == [[8, 6, 32, 44]]


def test_images_of_several_crops_beside_one_without_boxes(model):
    model.paste_masks = False
    samples = [image_sample([[10, 10, 30, 40]], [[8, 6, 32, 44]]) for _ in range(2)]
    inputs = torch.randn(2, 2, 3, SIZE, SIZE)
    frames = torch.tensor([[[8, 6, 32, 44], [4, 0, 36, 50]], [[8, 6, 32, 44], [9, 9, 31, 41]]])
    for sample, frame in zip(samples, frames):
        sample.gt_instances.view_bboxes = frame[None]
    alone = [
        model(inputs[i : i + 1], [sample.clone()], mode="predict")[0]
        for i, sample in enumerate(samples)
    ]
    empty = no_crops(dict(ori_shape=(50, 60)))["data_samples"]
    first, none, second = model(inputs, [samples[0], empty, samples[1]], mode="predict")
    assert len(none.pred_instances) == 0
    for found, expected in zip((first, second), alone):
        found, expected = found.pred_instances.mask_probs, expected.pred_instances.mask_probs
        torch.testing.assert_close(found, expected)
    assert not torch.allclose(first.pred_instances.mask_probs, second.pred_instances.mask_probs)


def test_several_equal_crops_predict_what_one_predicts(model):
    boxes, crops = [[10, 10, 30, 40], [2, 3, 50, 45]], [[8, 6, 32, 44], [0, 0, 52, 48]]
    one, three = image_sample(boxes, crops), image_sample(boxes, crops)
    three.gt_instances.view_bboxes = three.gt_instances.crop_bboxes[:, None].repeat(1, 3, 1)
    inputs = torch.randn(2, 3, SIZE, SIZE)
    model.crops_per_batch, model.paste_masks = 1, False
    (one,) = model(inputs, [one], mode="predict")
    (three,) = model(inputs[:, None].repeat(1, 3, 1, 1, 1), [three], mode="predict")
    for key in ("mask_probs", "mask_quality"):
        torch.testing.assert_close(one.pred_instances[key], three.pred_instances[key])


@pytest.mark.parametrize("refine, cells", [(False, 16), (True, SIZE)])
def test_what_lies_outside_the_image_is_not_judged(model, monkeypatch, refine, cells):
    """The box goes on to the left of the image, where there is nothing to have a mask of.

    Refining interpolates coarser logits, across the image's border, too.
    """
    model.refine_test = refine
    logits = torch.randn(cells, cells)
    other = logits.clone()
    other[:, : cells // 2] = 9.0  # the middle of the crop is the image's border
    qualities = []
    for views in (logits, other):
        monkeypatch.setattr(model, "view_logits", lambda crops, areas, v=views: v[None, None])
        sample = image_sample([[-10, 10, 10, 40]], [[-16, 5, 16, 45]])
        torch.manual_seed(0)
        (result,) = model(torch.randn(1, 3, SIZE, SIZE), [sample], mode="predict")
        qualities.append(result.pred_instances.mask_quality)
    assert torch.equal(*qualities)


def test_predict_in_bfloat16_is_near_float32(model):
    model.paste_masks = model.refine_test = False
    crop, sample = torch.randn(1, 3, SIZE, SIZE), image_sample([[10, 10, 30, 40]], [[8, 6, 32, 44]])
    (exact,) = model(crop, [sample.clone()], mode="predict")
    model.predict_dtype = torch.bfloat16
    (rough,) = model(crop, [sample.clone()], mode="predict")
    exact, rough = exact.pred_instances.mask_probs, rough.pred_instances.mask_probs
    assert rough.dtype == torch.float32 and not torch.equal(exact, rough)
    torch.testing.assert_close(exact, rough, atol=0.02, rtol=0)


def test_predict_of_images_without_boxes(model):
    empty = image_sample([[0, 0, 1, 1]], [[0, 0, 1, 1]])
    empty.gt_instances = empty.gt_instances[:0]
    full = image_sample([[10, 10, 30, 40]], [[8, 6, 32, 44]])
    results = model(torch.randn(1, 3, SIZE, SIZE), [empty, full], mode="predict")
    assert [len(r.pred_instances) for r in results] == [0, 1]
    assert [len(r.pred_instances) for r in model(torch.zeros(0, 3, 0, 0), [empty], "predict")] == [
        0
    ]


def test_label_sources_flip_and_batches(model):
    with torch.no_grad():
        for p in model.teacher.parameters():
            p.add_(0.05 * torch.randn_like(p))
    crops, areas = torch.randn(3, 3, SIZE, SIZE), torch.tensor([100.0, 3000.0, 1e5])
    student, teacher = (net.predict(crops, areas) for net in (model.student, model.teacher))
    assert torch.equal(model.mask_logits(crops, areas), student)
    model.label_source = "teacher"
    assert torch.equal(model.mask_logits(crops, areas), teacher)
    model.label_source = "both"
    torch.testing.assert_close(model.mask_logits(crops, areas), (student + teacher) / 2)
    model.label_source, model.flip_test = "student", True
    mirrored = model.student(crops.flip(3), areas).flip(2)
    torch.testing.assert_close(model.mask_logits(crops, areas), (student + mirrored) / 2)
    assert not torch.allclose(student, mirrored)


def test_refined_masks_and_their_quality(model, monkeypatch):
    """A hole in a plain object is closed; of five opinions four judge the mask with the hole."""
    logits = torch.full((16, 16), -4.0)
    logits[4:12, 4:12] = 4.0
    logits[7:9, 7:9] = -1.0
    monkeypatch.setattr(model, "view_logits", lambda crops, areas: logits[None, None])
    found = []
    for refine in (False, True):
        model.refine_test = refine
        sample = image_sample([[16, 16, 48, 48]], [[0, 0, 64, 64]], shape=(64, 64))
        (result,) = model(torch.zeros(1, 3, SIZE, SIZE), [sample], mode="predict")
        found.append(result.pred_instances)
    without, refined = found
    assert not without.masks[0, 30:34, 30:34].any() and refined.masks[0, 20:44, 20:44].all()
    assert not refined.masks[0, :14].any() and not refined.masks[0, :, 50:].any()
    fifth = 5 * float(refined.mask_quality) - 4 * float(without.mask_quality)
    assert 0.9 < fifth < 1 and float(without.mask_quality) < 0.8
    assert 0.9 < refined.scores < 1


def test_colors_weigh_as_the_option_says(model, monkeypatch):
    """Half of an object is missed, whose colour the other half has."""
    logits = torch.full((16, 16), -1.0)
    logits[4:12, 4:8] = 4.0
    image = torch.zeros(1, 3, SIZE, SIZE)
    image[:, :, 8:24, 8:24] = 1.0
    monkeypatch.setattr(model, "view_logits", lambda crops, areas: logits[None, None])
    model.refine_test = True
    found = {}
    for weight in (0.0, 4.0):
        model.color_weight = weight
        sample = image_sample([[16, 16, 48, 48]], [[0, 0, 64, 64]], shape=(64, 64))
        (result,) = model(image, [sample], mode="predict")
        found[weight] = result.pred_instances.masks[0, 18:46, 37:46]  # the missed half
    assert not found[0.0].any() and found[4.0].all()


def test_unknown_options_are_named():
    with pytest.raises(ValueError, match=r"'pupil'.*student"):
        MODELS.build(
            dict(
                type="MaskAutoLabeler",
                network={},
                mil_loss={},
                crf_loss={},
                data_preprocessor=dict(type="CropDataPreprocessor", mean=[0], std=[1]),
                label_source="pupil",
            )
        )


@pytest.mark.parametrize(
    "decoder",
    ["AttentionDecoder", "FullyConnectedDecoder", "FullyConvolutionalDecoder", "QueryDecoder"],
)
def test_decoders_are_swapped_by_one_line_of_config(demo, tmp_path, decoder):
    model = MODELS.build(
        tiny_config(demo, tmp_path, **{"model.network.decoder.type": decoder}).model
    )
    model.init_weights()
    inputs, samples = training_batch()
    sum(model(inputs, samples, mode="loss").values()).backward()
    assert all(p.grad.isfinite().all() for p in model.student.parameters())
    assert any(p.grad.any() for p in model.student.decoder.parameters())
    (result,) = model(
        torch.randn(1, 3, SIZE, SIZE),
        [image_sample([[10, 10, 30, 40]], [[8, 6, 32, 44]])],
        mode="predict",
    )
    assert result.pred_instances.masks.shape == (1, 50, 60)


def test_networks_that_are_cast_predict_as_autocast_does(model):
    crop, boxes = torch.randn(2, 3, SIZE, SIZE), [[10, 10, 30, 40], [5, 20, 15, 30]]
    crops = [[8, 6, 32, 44], [3, 18, 17, 32]]
    model.eval()
    model.paste_masks = model.refine_test = False
    model.predict_dtype = torch.bfloat16
    (mixed,) = model(crop, [image_sample(boxes, crops)], mode="predict")
    model.cast_networks()
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    (cast,) = model(crop, [image_sample(boxes, crops)], mode="predict")
    found = cast.pred_instances.mask_probs
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, mixed.pred_instances.mask_probs, rtol=0, atol=0.02)


@pytest.mark.parametrize("encoder", ["convnext", "resnet", "swin"])
def test_other_encoders_are_not_cast(encoder):
    """A Swin makes masks of float32, which only autocast can add to what it attends to."""
    cfg = Config.fromfile(ROOT / f"configs/mal/ablations/demo-encoder-{encoder}.py")
    model = MODELS.build(cfg.model).eval()
    model.predict_dtype = torch.bfloat16
    model.cast_networks()
    size = cfg.test_dataloader.dataset.pipeline[1].size
    logits = model.mask_logits(torch.randn(1, 3, size, size), torch.tensor([900.0]))
    assert logits.dtype == torch.float32 and logits.isfinite().all()
    assert {p.dtype for p in model.parameters()} == {torch.float32}


@pytest.mark.parametrize("pasted", [True, False])
def test_predictions_of_a_gpu_are_waited_for(model, pasted, monkeypatch):
    """By those who paste them; a prediction that is whole holds nothing that no file could."""
    waited = []
    empty = torch.empty
    monkeypatch.setattr(torch, "empty", lambda *args, pin_memory, **kw: empty(*args, **kw))
    monkeypatch.setattr(torch.Tensor, "is_cuda", property(lambda self: True), raising=False)
    monkeypatch.setattr(MODULE, "gpu_is_ready", lambda device: lambda: waited.append(device))
    model.paste_masks = pasted
    samples = [image_sample([[10, 10, 30, 40]], [[8, 6, 32, 44]])]
    (result,) = model(torch.randn(1, 3, SIZE, SIZE), samples, mode="predict")
    monkeypatch.undo()
    pred = result.to_dict()["pred_instances"]
    assert len(waited) == pasted and ("ready" in pred) == (not pasted)
    if pasted:
        pickle.dumps(pred)
    else:
        assert arrived(pred) is pred and len(waited) == 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_other_types_are_not_cast(model, dtype):
    model.predict_dtype = dtype
    model.cast_networks()
    assert {p.dtype for p in model.parameters()} == {torch.float32}


def test_data_samples_stay_on_the_cpu(model):
    """Or a GPU would be waited for between the layers of every step."""
    samples = [image_sample([[10, 10, 30, 40]], [[8, 6, 32, 44]])]
    data = dict(inputs=[torch.zeros(1, 3, SIZE, SIZE, dtype=torch.uint8)], data_samples=samples)
    found = model.data_preprocessor(data)["data_samples"]
    assert found[0] is samples[0]
