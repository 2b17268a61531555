# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

from mmdet.engine.hooks import MeanTeacherHook
from mmdet.registry import HOOKS
from mmengine.runner import Runner
from mmengine.utils.dl_utils.parrots_wrapper import _BatchNorm
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn


def optimizer_has_stepped(runner: Runner) -> bool:
    """Whether the iteration that is over ended with a step, and left no gradients for a later one.

    With ``accumulative_counts`` most do not. DeepSpeed's wrapper does not tell.
    """
    should_update = getattr(runner.optim_wrapper, "should_update", None)
    return should_update is None or should_update()


@HOOKS.register_module()
class MultiTensorMeanTeacherHook(MeanTeacherHook):
    """mmdet's ``MeanTeacherHook``, with all parameters in one call.

    The original goes from parameter to parameter, two operations each, which a GPU waits for more
    than it works on them. Besides, it moves the teacher in every iteration; here that is after
    every step of the optimizer, which may take several (``accumulative_counts``). And where the
    student's BatchNorm learns statistics, the teacher has the same: one in evaluation mode would
    keep those that it began with.

    Args:
        momentum: m in (0, 1): ``teacher ← (1 − m) · teacher + m · student`` after every step.
            Training begins with the teacher as a copy of the student.

    Raises:
        ValueError: Another ``momentum``; or, before training, a second such hook.
    """

    def __init__(self, momentum: float) -> None:
        if not 0 < momentum < 1:
            raise ValueError(f"momentum is {momentum!r}, but must lie between 0 and 1")
        super().__init__(momentum)
        self._model: nn.Module | None = None

    def before_train(self, runner: Runner) -> None:
        if sum(isinstance(hook, MeanTeacherHook) for hook in runner.hooks) > 1:
            raise ValueError(
                "two hooks move the teacher, one of them in default_hooks.mean_teacher: set that "
                "one's momentum, and leave the other out of custom_hooks"
            )
        super().before_train(runner)

    def after_train_iter(self, runner: Runner, *args: Any, **kwargs: Any) -> None:
        if optimizer_has_stepped(runner):
            super().after_train_iter(runner, *args, **kwargs)

    def momentum_update(self, model: nn.Module, momentum: float) -> None:
        """Moves the teacher's parameters towards the student's; with ``momentum`` 1, all the way.

        Args:
            model: Has a ``student`` and a ``teacher`` with the same parameters in the same order.
            momentum: Share of the way, in [0, 1].
        """
        if self._model is not model:  # to look them up takes longer than a GPU needs for the rest
            self._model = model
            networks = model.teacher, model.student
            self._parameters = [[*network.parameters()] for network in networks]
            self._statistics = [[*_statistics(network)] for network in networks]
        get_ema_multi_avg_fn(1 - momentum)(*self._parameters, None)
        for teacher, student in zip(*self._statistics):
            teacher.copy_(student)


def _statistics(network: nn.Module) -> Iterator[Tensor]:
    norms = (module for module in network.modules() if isinstance(module, _BatchNorm))
    return itertools.chain.from_iterable(norm.buffers() for norm in norms)
