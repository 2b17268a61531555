# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from collections.abc import Sequence

import torch
from mmdet.engine.hooks import DetVisualizationHook
from mmdet.registry import HOOKS
from mmdet.structures import DetDataSample
from mmengine.dist import all_reduce
from mmengine.runner import Runner

NAMED = 5


@HOOKS.register_module()
class ReadableVisualizationHook(DetVisualizationHook):
    """Draws predictions as mmdet's, but of the images that could be read alone.

    A test of phase 1 goes on without those that could not, see :class:`BoxCropDataset`. Scores
    count their boxes as missed, so a warning names the first of them, and one their number.
    """

    def before_test(self, runner: Runner) -> None:
        self._failed = 0

    def after_test_iter(
        self,
        runner: Runner,
        batch_idx: int,
        data_batch: dict,
        outputs: Sequence[DetDataSample],
    ) -> None:
        readable = [sample for sample in outputs if not sample.get("failed")]
        for sample in outputs:
            if failed := sample.get("failed"):
                self._failed += 1
                if self._failed <= NAMED:
                    runner.logger.warning(next(iter(failed.values())))
        super().after_test_iter(runner, batch_idx, data_batch, readable)

    def after_test_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        number = torch.tensor(self._failed)
        all_reduce(number)
        if number:
            runner.logger.warning(
                f"{number} of {len(runner.test_dataloader.dataset)} images could not be used; "
                "their boxes count as missed"
            )
