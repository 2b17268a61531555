# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from collections.abc import Sequence

from mmdet.engine.hooks import DetVisualizationHook
from mmdet.registry import HOOKS
from mmdet.structures import DetDataSample
from mmengine.runner import Runner


@HOOKS.register_module()
class ReadableVisualizationHook(DetVisualizationHook):
    """Draws predictions as mmdet's, but of the images that could be read alone.

    A test of phase 1 goes on without those that could not, see :class:`BoxCropDataset`.
    """

    def after_test_iter(
        self,
        runner: Runner,
        batch_idx: int,
        data_batch: dict,
        outputs: Sequence[DetDataSample],
    ) -> None:
        readable = [sample for sample in outputs if not sample.get("failed")]
        super().after_test_iter(runner, batch_idx, data_batch, readable)
