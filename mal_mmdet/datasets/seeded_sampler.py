# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

import numpy as np
from mmdet.registry import DATA_SAMPLERS
from mmengine.dataset import ClassBalancedDataset, ConcatDataset, DefaultSampler, RepeatDataset

WRAPPERS = (ClassBalancedDataset, ConcatDataset, RepeatDataset)


@DATA_SAMPLERS.register_module()
class SeededSampler(DefaultSampler):
    """Deals every index with a seed made of the run's seed, the epoch and the index.

    The augmentations of a sample then depend on these alone: not on the number of workers, on
    the rank, or on whether the training was interrupted and resumed.

    Args:
        boxes_per_image: So many boxes of an image, where it has them, are neighbours in the
            shuffled order, and :class:`BoxCropDataset` reads the image once for all of them.
            For photographs so large that reading them keeps the GPU waiting; the boxes of a
            batch are then less varied.

    Attributes:
        start: So many samples of this rank are left out the next time; then it is 0 again. For a
            training that goes on in the middle of an epoch. With ``boxes_per_image`` > 1 and
            another number of ranks, some boxes then come twice in that epoch, and others not.

    Raises:
        ValueError: ``boxes_per_image`` is under 1, or the data set takes no seeds.
    """

    def __init__(self, *args, boxes_per_image: int = 1, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        if isinstance(self.dataset, WRAPPERS):
            name = type(self.dataset).__name__
            raise ValueError(
                f"a {name} around the data set hands no seeds on: put the {name} inside the "
                "BoxCropDataset, as its dataset, or take a DefaultSampler"
            )
        if boxes_per_image < 1:
            raise ValueError(f"boxes_per_image is {boxes_per_image}, but must be at least 1")
        self.boxes_per_image = boxes_per_image
        self.start = 0

    def __iter__(self) -> Iterator[tuple[int, int]]:
        start, self.start = self.start, 0
        for index in islice(self._indices(), start, None):
            sequence = np.random.SeedSequence([self.seed, self.epoch, index])
            yield index, int(sequence.generate_state(1)[0])

    def _indices(self) -> Iterator[int]:
        if self.boxes_per_image == 1 or not self.shuffle:
            return super().__iter__()
        rng = np.random.default_rng([self.seed, self.epoch])
        order = neighbouring_order(self.dataset.boxes[:, 0], self.boxes_per_image, rng)
        # A rank takes a piece, where DefaultSampler would part the neighbours.
        order = np.resize(order, self.total_size)
        return iter(np.array_split(order, self.world_size)[self.rank].tolist())


def neighbouring_order(images: np.ndarray, length: int, rng: np.random.Generator) -> np.ndarray:
    """A random order of boxes in which those of an image come in runs.

    Args:
        images: Index of each box's image, int64, shape (N,).
        length: Most boxes in a run.
        rng: Decides which boxes of an image make up a run, and the order of all runs.

    Returns:
        Indices of boxes, int64, shape (N,): each once.
    """
    order = rng.permutation(len(images))
    order = order[np.argsort(images[order], kind="stable")]
    counts = np.unique(images, return_counts=True)[1]
    places = np.concatenate([np.arange(count) for count in counts])
    runs = np.cumsum(places % length == 0) - 1
    return order[np.argsort(rng.permutation(runs[-1] + 1)[runs], kind="stable")]
