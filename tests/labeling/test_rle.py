# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest
from pycocotools import mask as mask_utils

from mal_mmdet.labeling.polygons import UNREADABLE, mask_problem
from mal_mmdet.labeling.rle import compress_runs, decompress_runs


@pytest.mark.parametrize("longest", [3, 40, 2000, 2**20])
def test_text_is_that_of_pycocotools_and_comes_back(longest):
    rng = np.random.default_rng(longest)
    for count in range(1, 60):
        runs = rng.integers(0, longest, count, endpoint=True)
        size = [1, int(runs.sum())]
        expected = mask_utils.frPyObjects(dict(size=size, counts=runs.tolist()), *size)
        text = compress_runs(runs)
        assert text.encode() == expected["counts"]
        np.testing.assert_array_equal(decompress_runs(text), runs)


def test_signs_at_the_edge_of_a_group():
    """15 and -16 fit into five bits, 16 and -17 do not."""
    for change in (15, -16, 16, -17, 511, -512, 512, -513):
        runs = np.array([1, 600, 1, 600 + change])
        expected = mask_utils.frPyObjects(dict(size=[1, 5000], counts=runs.tolist()), 1, 5000)
        assert compress_runs(runs).encode() == expected["counts"]
        np.testing.assert_array_equal(decompress_runs(compress_runs(runs)), runs)


def test_runs_whose_sum_overflows_to_the_right_one():
    """A million runs, each the one two before and 26 bits more, are 2^64 and ten pixels."""
    pairs, target = 2**19, 2**64 + 10
    often = np.arange(pairs, 0, -1)  # in how many runs a change counts
    step, rest = divmod(target, 2 * int(often.sum()))
    changes = np.full((pairs, 2), step)
    more, rest = divmod(rest, pairs)
    changes[0, 0] += more
    changes[pairs - rest, 1] += 1
    runs = changes.cumsum(0).ravel()
    assert sum(runs.tolist()) == target and runs.sum() == 10
    text = compress_runs(runs)
    np.testing.assert_array_equal(decompress_runs(text), runs)
    assert mask_problem(dict(size=[2, 5], counts=text), dict(height=2, width=5)) == UNREADABLE


@pytest.mark.parametrize("counts", ["", "5", "P", "o", "é", "^O9", "0\n", 5, None, [5, -5, 10]])
def test_what_is_no_text_of_runs(counts):
    segmentation = dict(size=[2, 5], counts=counts)
    assert mask_problem(segmentation, dict(height=2, width=5)) == UNREADABLE
    assert mask_problem(dict(size=[2, 5], counts="0:"), dict(height=2, width=5)) is None
