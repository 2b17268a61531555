# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from mmdet.registry import DATA_SAMPLERS
from mmengine.dataset import DefaultSampler


@DATA_SAMPLERS.register_module()
class SeededSampler(DefaultSampler):
    """Deals every index with a seed made of the run's seed, the epoch and the index.

    The augmentations of a sample then depend on these alone: not on the number of workers, on
    the rank, or on whether the training was interrupted and resumed.
    """

    def __iter__(self) -> Iterator[tuple[int, int]]:
        for index in super().__iter__():
            sequence = np.random.SeedSequence([self.seed, self.epoch, index])
            yield index, int(sequence.generate_state(1)[0])
