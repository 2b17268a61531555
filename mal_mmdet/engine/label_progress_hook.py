# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from collections.abc import Sequence

from mmdet.registry import HOOKS
from mmdet.structures import DetDataSample
from mmengine.dist import get_world_size, is_main_process
from mmengine.hooks import Hook
from mmengine.runner import Runner
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text


class _BoxesPerSecond(ProgressColumn):
    def render(self, task: Task) -> Text:
        return Text(f"{task.speed or 0:.1f} boxes/s")


@HOOKS.register_module()
class LabelProgressHook(Hook):
    """Progress bar of labeling: boxes done, boxes per second and time left.

    The data loader's batches are those of a :class:`LabelBatchSampler`.
    """

    def before_test(self, runner: Runner) -> None:
        self._progress = None
        boxes = runner.test_dataloader.batch_sampler.boxes_left  # ranks have to ask together
        if not is_main_process():
            return
        columns = [TextColumn("labeling"), BarColumn(), MofNCompleteColumn()]
        self._progress = Progress(*columns, _BoxesPerSecond(), TimeRemainingColumn())
        self._progress.start()
        self._task = self._progress.add_task("", total=boxes)

    def after_test_iter(
        self,
        runner: Runner,
        batch_idx: int,
        data_batch: dict | None = None,
        outputs: Sequence[DetDataSample] | None = None,
    ) -> None:
        if self._progress:
            boxes = sum(len(sample.pred_instances) for sample in outputs)
            self._progress.advance(self._task, boxes * get_world_size())

    def after_test(self, runner: Runner) -> None:
        if self._progress:
            self._progress.stop()
