# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import heapq
from collections.abc import Iterator
from functools import cached_property

import numpy as np
from mmdet.registry import DATA_SAMPLERS
from mmengine.dataset import DefaultSampler
from mmengine.dist import broadcast_object_list, get_dist_info, is_main_process
from torch.utils.data import Sampler

from mal_mmdet.labeling import LabelShards, common_fingerprint


@DATA_SAMPLERS.register_module()
class LabelBatchSampler(Sampler):
    """Deals the images of a labeling in batches of boxes, evenly to all ranks.

    A batch is a run of neighbouring images, cut by the data set alone. Its pixels thus meet the
    same network in the same company, and give the same masks to the bit, whatever the number of
    ranks and after whatever interruption. Batches are dealt by their number of boxes and images,
    the largest first and always to the rank with the least, so that ranks end together.

    Args:
        sampler: Knows the data set, a :class:`BoxCropDataset` that is grouped by image; its
            order is not used.
        batch_size: Most boxes in a batch; an image with more is one for itself.
        shards: Folder of :class:`LabelShards`; batches that are finished there are left out.
        fingerprint: Of the run, as its :class:`LabelWriter` has it: what a lost process of
            another one still writes there is not finished.

    Raises:
        RuntimeError: As :func:`common_fingerprint`.
    """

    def __init__(
        self,
        sampler: DefaultSampler,
        batch_size: int,
        shards: str | None = None,
        fingerprint: dict[str, str] | None = None,
    ) -> None:
        self.dataset = sampler.dataset
        self.batch_size = batch_size
        if fingerprint is not None:
            fingerprint = common_fingerprint(fingerprint)
        self.shards = LabelShards(shards, fingerprint) if shards else None

    # Found out at first use: by then the shards have been looked through.
    @cached_property
    def unfinished(self) -> list[range]:
        """The batches that are left to all ranks."""
        batches = cut_batches(self.dataset.boxes_per_sample, self.batch_size)
        if not self.shards:
            return batches
        # Only one rank looks, or a slow one would already find the first shards of a fast one.
        done = [self.shards.finished_samples() if is_main_process() else None]
        broadcast_object_list(done)
        return [batch for batch in batches if not done[0].issuperset(batch)]

    @cached_property
    def batches(self) -> list[range]:
        """This rank's share of them."""
        rank, world_size = get_dist_info()
        costs = [self._num_boxes(batch) + len(batch) for batch in self.unfinished]
        return [self.unfinished[i] for i in deal(costs, world_size)[rank]]

    @property
    def boxes_left(self) -> int:
        """Number of boxes in the batches of all ranks."""
        return sum(map(self._num_boxes, self.unfinished))

    def _num_boxes(self, batch: range) -> int:
        return int(self.dataset.boxes_per_sample[batch.start : batch.stop].sum())

    def __iter__(self) -> Iterator[list[int]]:
        return map(list, self.batches)

    def __len__(self) -> int:
        return len(self.batches)


def cut_batches(counts: np.ndarray, size: int) -> list[range]:
    """Cuts samples 0 … n − 1 into runs of at most ``size`` boxes, or of one larger sample.

    Args:
        counts: Number of boxes of each sample, (n,).
        size: Most boxes in a run of several samples.
    """
    batches, start, boxes = [], 0, 0
    for i, count in enumerate(counts.tolist()):
        if i > start and boxes + count > size:
            batches.append(range(start, i))
            start, boxes = i, 0
        boxes += count
    return [*batches, range(start, len(counts))] if len(counts) else []


def deal(costs: list[int], hands: int) -> list[list[int]]:
    """Deals pieces of work, the dearest first and each to the hand with the least so far.

    Returns:
        For each hand the indices into ``costs``, ascending.
    """
    loads = [(0, hand) for hand in range(hands)]
    dealt: list[list[int]] = [[] for _ in range(hands)]
    for i in sorted(range(len(costs)), key=lambda i: -costs[i]):
        load, hand = heapq.heappop(loads)
        dealt[hand].append(i)
        heapq.heappush(loads, (load + costs[i], hand))
    return [sorted(indices) for indices in dealt]
