# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import math

from mmdet.registry import HOOKS
from mmdet.structures import DetDataSample
from mmengine.hooks import Hook
from mmengine.runner import Runner


@HOOKS.register_module()
class LossCheckHook(Hook):
    """Ends a training of phase 1 whose loss is NaN or infinite, and names the crops it came from.

    Only the loss counts. Gradients that overflow in mixed precision are no fault: the gradient
    scaler leaves out such a step and scales less.
    """

    def after_train_iter(
        self,
        runner: Runner,
        batch_idx: int,
        data_batch: dict | None = None,
        outputs: dict | None = None,
    ) -> None:
        """Looks at the losses of this rank.

        Raises:
            FloatingPointError: One is not finite.
        """
        # Not at ``outputs``, whose tensors may be on a GPU: MMEngine's RuntimeInfoHook, the first
        # of all hooks, has waited for them and put them here as numbers.
        hub = runner.message_hub
        losses = {k: float(hub.get_scalar(f"train/{k}").current()) for k in outputs if "loss" in k}
        if all(map(math.isfinite, losses.values())):
            return
        lines = [describe(sample) for sample in data_batch["data_samples"]["student"]]
        raise FloatingPointError(
            f"the loss is not finite in iteration {runner.iter + 1}: {losses}. The weights of this "
            "step are lost; checkpoints hold earlier ones. If the crops are in order, lower "
            "the learning rate or train in float32. The batch:\n" + "\n".join(lines)
        )


def describe(sample: DetDataSample) -> str:
    """Annotation, image and box of a training crop, in one line."""
    instances = sample.gt_instances
    ids = ", ".join(str(i) for i in instances.get("ann_ids", ["?"]))
    box = [round(v, 2) for v in instances.ori_bboxes[0].tolist()]
    return f"  annotation {ids} in {sample.get('img_path')}, box {box} (x0, y0, x1, y1)"
