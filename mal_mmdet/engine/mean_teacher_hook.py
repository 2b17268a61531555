# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from mmdet.engine.hooks import MeanTeacherHook
from mmdet.registry import HOOKS
from torch import nn
from torch.optim.swa_utils import get_ema_multi_avg_fn


@HOOKS.register_module()
class MultiTensorMeanTeacherHook(MeanTeacherHook):
    """mmdet's ``MeanTeacherHook`` for parameters, all of them in one call.

    The original goes from parameter to parameter, two operations each, which a GPU waits for more
    than it works on them.

    Args:
        momentum: m in (0, 1): ``teacher ← (1 − m) · teacher + m · student`` after every step.
            Training begins with the teacher as a copy of the student.
    """

    def __init__(self, momentum: float) -> None:
        super().__init__(momentum)
        self._model: nn.Module | None = None

    def momentum_update(self, model: nn.Module, momentum: float) -> None:
        """Moves the teacher's parameters towards the student's; with ``momentum`` 1, all the way.

        Args:
            model: Has a ``student`` and a ``teacher`` with the same parameters in the same order.
            momentum: Share of the way, in [0, 1].
        """
        if self._model is not model:  # to look them up takes longer than a GPU needs for the rest
            self._model = model
            self._teacher, self._student = (
                [*network.parameters()] for network in (model.teacher, model.student)
            )
        get_ema_multi_avg_fn(1 - momentum)(self._teacher, self._student, None)
