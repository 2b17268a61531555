# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from collections.abc import Sequence

from mmdet.registry import HOOKS
from mmdet.structures import DetDataSample
from mmengine.hooks import Hook
from mmengine.runner import Runner

from .signals import stop_signals


@HOOKS.register_module()
class LabelStopHook(Hook):
    """Lets labeling end on SIGTERM or SIGINT with all that is finished in its shards.

    The evaluator's one metric is a :class:`LabelWriter`. Ranks need not agree: each writes its own.
    """

    priority = "LOW"

    def before_test(self, runner: Runner) -> None:
        # Without a batch nobody would look at what was noted.
        stop_signals.noting = stop_signals.handling and len(runner.test_dataloader) > 0

    def after_test_iter(
        self,
        runner: Runner,
        batch_idx: int,
        data_batch: dict | None = None,
        outputs: Sequence[DetDataSample] | None = None,
    ) -> None:
        if stop_signals.received:
            (writer,) = runner.test_evaluator.metrics
            writer.flush()
            runner.logger.info(f"stopped; --resume goes on from {writer.shards.folder}")
            raise SystemExit(128 + stop_signals.received)
        if batch_idx + 1 == len(runner.test_dataloader):
            stop_signals.noting = False  # the merge can be repeated: a signal ends it at once
