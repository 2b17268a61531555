# SPDX-License-Identifier: Apache-2.0
from types import SimpleNamespace

import numpy as np
import pytest
from mmdet.registry import DATA_SAMPLERS

from mal_mmdet.datasets import label_batch_sampler
from mal_mmdet.datasets.label_batch_sampler import cut_batches, deal
from mal_mmdet.labeling import LabelShards

COUNTS = np.random.default_rng(0).integers(1, 40, 200)


def make_sampler(monkeypatch, rank=0, world_size=1, **options):
    monkeypatch.setattr(label_batch_sampler, "get_dist_info", lambda: (rank, world_size))
    dataset = SimpleNamespace(boxes_per_sample=COUNTS)
    cfg = dict(type="LabelBatchSampler", batch_size=32, **options)
    return DATA_SAMPLERS.build(cfg, default_args=dict(sampler=SimpleNamespace(dataset=dataset)))


def batches(*args, **options):
    sampler = make_sampler(*args, **options)
    dealt = list(sampler)
    assert len(sampler) == len(dealt)
    return dealt


def test_batches_are_runs_of_images_with_at_most_so_many_boxes():
    counts = np.array([10, 20, 2, 1, 50, 3, 3])
    assert cut_batches(counts, 32) == [range(0, 3), range(3, 4), range(4, 5), range(5, 7)]
    assert cut_batches(counts, 1000) == [range(7)]
    assert cut_batches(counts[:0], 32) == []


@pytest.mark.parametrize("world_size", [2, 3, 8])
def test_ranks_share_the_batches_of_one_and_end_together(monkeypatch, world_size):
    whole = batches(monkeypatch)
    assert [i for batch in whole for i in batch] == list(range(200))
    parts = [batches(monkeypatch, rank, world_size) for rank in range(world_size)]
    assert sorted(batch for part in parts for batch in part) == whole
    loads = [sum(COUNTS[i] + 1 for batch in part for i in batch) for part in parts]
    assert max(loads) - min(loads) <= 33 + 32


def test_dealing_beats_taking_turns():
    costs = [30, 1, 30, 1, 30, 1, 30, 1]
    assert [sum(costs[i] for i in hand) for hand in deal(costs, 2)] == [62, 62]
    assert deal([5], 3) == [[0], [], []] and deal([], 2) == [[], []]


def test_finished_batches_are_left_out(monkeypatch, tmp_path):
    whole = batches(monkeypatch)
    shards = LabelShards(tmp_path / "shards", {})
    shards.open(resume=False)
    shards.write(whole[3] + whole[7], [])
    several = next(batch for batch in whole[8:] if len(batch) > 1)
    shards.write(several[:-1], [])  # of the last of these images the labels failed
    sampler = make_sampler(monkeypatch, shards=str(shards.folder))
    left = list(sampler)
    assert sampler.boxes_left == sum(COUNTS[i] for batch in left for i in batch)
    assert left == [batch for i, batch in enumerate(whole) if i not in (3, 7)]


def test_what_a_lost_process_of_another_run_has_finished_is_not(monkeypatch, tmp_path):
    whole = batches(monkeypatch)
    shards = LabelShards(tmp_path / "shards", dict(weights="new"))
    shards.open(resume=False)
    shards.write(whole[3], [])
    LabelShards(shards.folder, dict(weights="old")).write(whole[7], [])
    options = dict(shards=str(shards.folder), fingerprint=dict(weights="new"))
    assert batches(monkeypatch, **options) == [b for i, b in enumerate(whole) if i != 3]
