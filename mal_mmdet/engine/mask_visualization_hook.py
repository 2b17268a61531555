# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from collections.abc import Sequence

import torch
from mmdet.registry import HOOKS
from mmdet.visualization import DetLocalVisualizer
from mmengine.dist import is_main_process
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.runner import Runner
from torch import Tensor

from mal_mmdet.labeling import paste_mask, threshold_for_area
from mal_mmdet.models import MaskAutoLabeler
from mal_mmdet.structures import resize_maps
from mal_mmdet.visualization import arrange, crop_to_image, draw_panel
from mal_mmdet.visualization.panels import ORANGE


@HOOKS.register_module()
class MaskVisualizationHook(Hook):
    """Shows through MMEngine's visualizer what the student makes of some training crops.

    One picture at a time, ``train_masks``: for each crop its box (green), the probabilities
    from black to white, and the mask as labeling would threshold it (orange), on the view
    without colour jitter. The training is not touched: it ends with the same weights, to the
    bit, as without the hook.

    Args:
        interval: Iterations from one picture to the next.
        num_samples: Crops in a picture, from the start of the batch.
        size: Side of a panel in pixels.

    Raises:
        ValueError: One of them is under 1.
    """

    def __init__(self, interval: int = 1000, num_samples: int = 8, size: int = 128) -> None:
        for name, value in dict(interval=interval, num_samples=num_samples, size=size).items():
            if value < 1:
                raise ValueError(f"{name} is {value}, but must be at least 1")
        self.interval = interval
        self.num_samples = num_samples
        self.size = size

    def after_train_iter(
        self,
        runner: Runner,
        batch_idx: int,
        data_batch: dict | None = None,
        outputs: dict | None = None,
    ) -> None:
        if not self.every_n_train_iters(runner, self.interval):
            return
        model = runner.model.module if is_model_wrapper(runner.model) else runner.model
        crops = data_batch["inputs"]["teacher"][: self.num_samples]
        samples = data_batch["data_samples"]["student"][: self.num_samples]
        instances = [sample.gt_instances for sample in samples]
        # On every rank: with FSDP each holds a part of the student.
        probs = student_probs(model, crops, torch.cat([i.areas for i in instances]))
        if not is_main_process():
            return
        visualizer = DetLocalVisualizer()
        tiles = []
        for crop, instance, prob in zip(crops, instances, probs):
            image = crop_to_image(crop, model.data_preprocessor.bgr_to_rgb, self.size)
            bbox = instance.bboxes[0].cpu().numpy() * (self.size / crop.shape[-1])
            threshold = threshold_for_area(model.thresholds, float(instance.areas))
            mask = torch.zeros(self.size, self.size, dtype=torch.bool)
            # A panel is an image that the crop fills.
            paste_mask(prob, (0, 0, self.size, self.size), bbox.tolist(), threshold, out=mask)
            grey = (prob * 255).byte().expand(3, -1, -1)
            tiles.append(
                [
                    draw_panel(visualizer, image, bbox=bbox),
                    crop_to_image(grey, False, self.size),
                    draw_panel(visualizer, image, mask=mask.numpy(), colour=ORANGE),
                ]
            )
        runner.visualizer.add_image("train_masks", arrange(tiles, columns=2), runner.iter + 1)


@torch.no_grad()
def student_probs(model: MaskAutoLabeler, crops: Sequence[Tensor], areas: Tensor) -> Tensor:
    """What the student makes of training crops, without a trace in the model or in randomness.

    Args:
        model: In any mode; every module's mode is put back.
        crops: B crops, uint8, shape (3, S, S) each.
        areas: Areas of the original boxes in image pixels, shape (B,).

    Returns:
        Probabilities on the CPU, float32, shape (B, S, S).
    """
    batch = dict(inputs=dict(student=list(crops)), data_samples=dict(student=[areas]))
    data = model.data_preprocessor(batch, training=True)
    views, (areas,) = data["inputs"]["student"], data["data_samples"]
    modes = {module: module.training for module in model.student.modules()}
    model.student.eval()
    try:
        with torch.random.fork_rng([views.device] if views.is_cuda else []):
            logits = model.student(views, areas).float()
    finally:
        for module, training in modes.items():
            module.training = training
    logits = resize_maps(logits[:, None], views.shape[2:])[:, 0]
    return logits.sigmoid().cpu()
