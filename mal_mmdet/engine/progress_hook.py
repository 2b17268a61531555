# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from collections.abc import Sequence

from mmdet.registry import HOOKS
from mmdet.structures import DetDataSample
from mmengine.dist import get_world_size
from mmengine.hooks import Hook
from mmengine.runner import Runner

from mal_mmdet.progress import Meter


@HOOKS.register_module()
class ProgressHook(Hook):
    """On a terminal, a bar of training's and of testing's iterations.

    In log files and pipes MMEngine's log lines say the same.

    Args:
        bar_only: Whether to say nothing where there is no terminal.
    """

    def __init__(self, bar_only: bool = True) -> None:
        self.bar_only = bar_only

    def before_train(self, runner: Runner) -> None:
        self._meter = Meter(
            "training", "iterations", runner.max_iters, done=runner.iter, bar_only=self.bar_only
        )

    def after_train_iter(
        self,
        runner: Runner,
        batch_idx: int,
        data_batch: dict | None = None,
        outputs: dict | None = None,
    ) -> None:
        self._meter.advance()

    def after_train(self, runner: Runner) -> None:
        self._meter.stop()

    def before_test(self, runner: Runner) -> None:
        total = len(runner.test_dataloader)
        self._meter = Meter("testing", "iterations", total, bar_only=self.bar_only)

    def after_test_iter(
        self,
        runner: Runner,
        batch_idx: int,
        data_batch: dict | None = None,
        outputs: Sequence[DetDataSample] | None = None,
    ) -> None:
        self._meter.advance()

    def after_test(self, runner: Runner) -> None:
        self._meter.stop()


@HOOKS.register_module()
class LabelProgressHook(Hook):
    """How far labeling is: boxes done, boxes per second and time left.

    The data loader's batches are those of a :class:`LabelBatchSampler`.
    """

    def before_test(self, runner: Runner) -> None:
        boxes = runner.test_dataloader.batch_sampler.boxes_left  # ranks have to ask together
        self._meter = Meter("labeling", "boxes", boxes)

    def after_test_iter(
        self,
        runner: Runner,
        batch_idx: int,
        data_batch: dict | None = None,
        outputs: Sequence[DetDataSample] | None = None,
    ) -> None:
        boxes = sum(len(sample.pred_instances) for sample in outputs)
        self._meter.advance(boxes * get_world_size())

    def after_test(self, runner: Runner) -> None:
        self._meter.stop()
