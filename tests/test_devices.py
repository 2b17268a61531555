# SPDX-License-Identifier: Apache-2.0
"""Nothing of training and labeling mixes the device of the weights with the CPU."""

import contextlib
import copy
import json
from unittest import mock

import pytest
import torch
from mmdet.registry import MODELS
from mmdet.structures import DetDataSample
from mmengine.config import Config
from mmengine.runner import Runner
from mmengine.structures import InstanceData
from pycocotools import mask as coco_mask

from mal_mmdet.apis import generate_labels
from mal_mmdet.checkpoints import load_safely
from tests.conftest import ROOT, tiny_config
from tests.other_device import OTHER, OtherTensor, other_device

SIZE = 64
AREAS = (500.0, 5000.0, 50000.0)  # small, medium, large
CONFIGS = [ROOT / "configs/mal/mal_vit-demo_1xb16_demo.py"]
CONFIGS += sorted((ROOT / "configs/mal/ablations").glob("de*.py"))  # decoders, demo's encoders


@pytest.fixture(params=CONFIGS, ids=lambda path: path.stem)
def models(request):
    """The same model on the CPU and on the other device."""
    cfg = Config.fromfile(request.param)
    cfg.model.mil_loss.warmup_iters = cfg.model.crf_loss.warmup_iters = 0
    cfg.model.crf_loss.num_steps = 3  # after more, rounding may decide
    cfg.model.return_features = True
    torch.manual_seed(0)
    model = MODELS.build(cfg.model).train()
    with other_device() as device:
        there = copy.deepcopy(model).to(device)
        assert all(isinstance(p, OtherTensor) and p.device == OTHER for p in there.parameters())
        yield model, there


def crops():
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (3, 3, SIZE, SIZE), generator=generator, dtype=torch.uint8)


def test_losses_and_gradients(models):
    found = []
    for model in models:
        box = torch.tensor([[10.0, 12.0, 50.0, 56.0]])
        samples = [
            DetDataSample(gt_instances=InstanceData(bboxes=box, areas=torch.tensor([area])))
            for area in AREAS
        ]
        views = ("student", "teacher")
        data = dict(
            inputs={view: [*crops()] for view in views},
            data_samples=dict.fromkeys(views, samples),
        )
        losses = model(**model.data_preprocessor(data, training=True), mode="loss")
        sum(losses.values()).backward()
        gradients = [p.grad for p in model.student.parameters() if p.grad is not None]
        found.append([*losses.values(), *gradients])
    here, there = found
    assert len(here) == len(there) > 10 and any(x.abs().sum() > 0 for x in here[2:])
    for a, b in zip(here, there):
        assert a.device.type == "cpu" and b.device == OTHER
        torch.testing.assert_close(b.detach().cpu(), a.detach(), rtol=1e-3, atol=1e-5)


def test_predictions_are_on_the_cpu(models):
    found = []
    for model in models:
        boxes = torch.tensor([[10.0, 12.0, 50.0, 56.0]]).repeat(3, 1)
        instances = InstanceData(
            ori_bboxes=boxes,
            crop_bboxes=torch.tensor([[0.0, 2.0, 60.0, 64.0]]).repeat(3, 1),
            areas=torch.tensor(AREAS),
            labels=torch.zeros(3, dtype=torch.int64),
        )
        sample = DetDataSample(gt_instances=instances, metainfo=dict(ori_shape=(70, 65)))
        data = dict(inputs=[crops()], data_samples=[sample])
        batch = model.eval().data_preprocessor(data, training=False)
        [sample] = model(**batch, mode="predict")
        found.append(sample.pred_instances)
    here, there = found
    assert {"masks", "scores", "mask_quality", "features"} < set(here.keys()) == set(there.keys())
    for key, value in here.items():
        assert there[key].device.type == "cpu", key
        torch.testing.assert_close(there[key], value, rtol=1e-3, atol=1e-5)


def test_what_a_gpu_allows():
    with other_device() as device:
        there = torch.ones(2).to(device)
        assert (there * 2.0).device == device and (there * torch.tensor(2.0)).tolist() == [2, 2]
        there[torch.tensor([1])] = torch.tensor(3.0)
        assert there[torch.tensor([1])].tolist() == [3] and there[there > 1].device == device


MIXTURES = dict(
    add=lambda there, here: there + here,
    index=lambda there, here: here[there.long()],
    mask=lambda there, here: here[there > 0],
    put=lambda there, here: here.index_put_((there.long(),), torch.tensor(1.0)),
    put_values=lambda there, here: there.index_put_((there.long(),), here),
    index_select=lambda there, here: there.index_select(0, here.long()),
    index_add=lambda there, here: there.index_add_(0, here.long(), here),
    stack=lambda there, here: torch.stack([there[0], here[0]]),
)


@pytest.mark.parametrize("mix", MIXTURES.values(), ids=MIXTURES)
def test_a_mixture_is_found(mix):
    with other_device() as device:
        there = torch.ones(2).to(device)
        with pytest.raises(RuntimeError, match="on the CPU"):
            mix(there, torch.ones(2))
        with pytest.raises(TypeError, match="NumPy"):
            there.numpy()


def test_a_training_and_its_labels(demo, tmp_path):
    """With all hooks; what is written is on the CPU."""
    boxes, weights, labels = demo / "boxes_val.json", [], []
    for name, where in (("here", contextlib.nullcontext("cpu")), ("there", other_device())):
        options = {"train_cfg.max_epochs": 1, "randomness": dict(seed=0)}
        options["custom_hooks.0.interval"] = 1  # pictures of masks
        options["optim_wrapper.optimizer.fused"] = False  # PyTorch knows who has it by name
        cfg = tiny_config(demo, tmp_path / name, **options)
        with where as device, mock.patch("mmengine.runner.runner.get_device", str(device).format):
            runner = Runner.from_cfg(cfg)
            assert {p.device for p in runner.model.parameters()} == {torch.device(device)}
            runner.train()
            checkpoint = tmp_path / name / "epoch_1.pth"
            out = tmp_path / f"{name}.json"
            assert generate_labels(cfg, checkpoint, boxes, demo / "val", out) == 0
        weights.append(load_safely(checkpoint)["state_dict"])
        labels.append(json.loads(out.read_text())["annotations"])
    for key, value in weights[0].items():
        torch.testing.assert_close(weights[1][key], value, rtol=1e-3, atol=1e-4)
    assert len(labels[0]) == len(labels[1]) > 5
    for here, there in zip(*labels):
        masks = [here["segmentation"]], [there["segmentation"]]
        assert coco_mask.iou(*masks, [0]) > 0.98
        assert here["mask_quality"] == pytest.approx(there["mask_quality"], abs=0.01)
