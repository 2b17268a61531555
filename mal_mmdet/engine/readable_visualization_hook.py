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

    Validation and test of phase 1 go on without those that could not, see :class:`BoxCropDataset`.
    Scores count their boxes as missed, so a warning names the first of them, and one their number.
    """

    def before_val(self, runner: Runner) -> None:
        self._failed = 0

    before_test = before_val

    def after_val_iter(
        self,
        runner: Runner,
        batch_idx: int,
        data_batch: dict,
        outputs: Sequence[DetDataSample],
    ) -> None:
        readable = self._readable(runner, outputs)
        if readable:  # mmdet's draws the first
            super().after_val_iter(runner, batch_idx, data_batch, readable)

    def after_test_iter(
        self,
        runner: Runner,
        batch_idx: int,
        data_batch: dict,
        outputs: Sequence[DetDataSample],
    ) -> None:
        super().after_test_iter(runner, batch_idx, data_batch, self._readable(runner, outputs))

    def _readable(self, runner: Runner, outputs: Sequence[DetDataSample]) -> list[DetDataSample]:
        for sample in outputs:
            if failed := sample.get("failed"):
                self._failed += 1
                if self._failed <= NAMED:
                    runner.logger.warning(next(iter(failed.values())))
        return [sample for sample in outputs if not sample.get("failed")]

    def after_val_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        self._warn(runner, len(runner.val_dataloader.dataset))

    def after_test_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        self._warn(runner, len(runner.test_dataloader.dataset))

    def _warn(self, runner: Runner, size: int) -> None:
        number = torch.tensor(self._failed)
        all_reduce(number)
        if number:
            runner.logger.warning(
                f"{number} of {size} images could not be used; their boxes count as missed"
            )
