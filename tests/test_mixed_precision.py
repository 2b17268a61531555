# SPDX-License-Identifier: Apache-2.0
"""Training in bfloat16 and float16, by autocast on the CPU, where MMEngine's AMP does not run.

``MAL_MMDET_AMP_STEPS=2000`` makes it long.
"""

import os

import pytest
import torch
from mmdet.registry import DATASETS, MODELS
from torch.utils.data import DataLoader

from mal_mmdet.datasets import SeededSampler
from mal_mmdet.engine import MultiTensorMeanTeacherHook
from tests.conftest import tiny_config

STEPS = int(os.environ.get("MAL_MMDET_AMP_STEPS", "15"))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_losses_and_gradients_stay_finite(demo, tmp_path, dtype):
    cfg = tiny_config(demo, tmp_path)
    model = MODELS.build(cfg.model).train()
    model.init_weights()
    dataset = DATASETS.build(cfg.train_dataloader.dataset)
    optimizer = torch.optim.AdamW(model.student.parameters(), lr=cfg.optim_wrapper.optimizer.lr)
    scaler = torch.amp.GradScaler("cpu", enabled=dtype is torch.float16)
    hook = MultiTensorMeanTeacherHook(0.004)
    losses, skipped, epoch = [], 0, 0
    while len(losses) < STEPS:
        sampler = SeededSampler(dataset, seed=epoch)
        loader = DataLoader(dataset, batch_size=4, sampler=sampler, collate_fn=list)
        for samples in list(loader)[: STEPS - len(losses)]:
            inputs = {
                view: [sample["inputs"][view] for sample in samples]
                for view in ("student", "teacher")
            }
            boxes = dict(student=[sample["data_samples"]["student"] for sample in samples])
            data = model.data_preprocessor(dict(inputs=inputs, data_samples=boxes), training=True)
            with torch.autocast("cpu", dtype):
                parts = model(**data, mode="loss")
            assert all(loss.dtype is torch.float32 for loss in parts.values())
            loss = sum(parts.values())
            assert loss.isfinite(), f"{parts} in step {len(losses)}"
            optimizer.zero_grad()
            scaler.scale(loss).backward()
            scaler.unscale_(optimizer)
            norm = torch.nn.utils.get_total_norm(p.grad for p in model.student.parameters())
            skipped += not norm.isfinite()
            scaler.step(optimizer)  # not the step whose scale was too large
            scaler.update()
            hook.momentum_update(model, hook.momentum)
            losses.append(float(loss.detach()))
        epoch += 1
    assert all(value.isfinite().all() for value in model.parameters())
    # Dynamic scaling begins too large, and tries a larger scale every 2,000 steps.
    assert skipped <= (8 if dtype is torch.float16 else 0)
    tail = losses[-max(len(losses) // 10, 5) :]
    assert sum(tail) / len(tail) < losses[0]
    print(f"{STEPS} steps in {dtype}, {skipped} skipped, loss {losses[0]:.3f} → {tail[-1]:.3f}")
