# SPDX-License-Identifier: Apache-2.0
"""The watch of tools/analysis_tools/soak.py over a process whose growth is known."""

import importlib.util
import sys

import numpy as np
import pytest

from tests.conftest import ROOT

SPEC = importlib.util.spec_from_file_location("soak", ROOT / "tools/analysis_tools/soak.py")
soak = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(soak)

GROWING = """
import time
held, files = [], []
while True:
    held.append(bytearray(b"x" * 1_000_000))
    files.append(open("/dev/null"))
    time.sleep(0.1)
"""

UNSHARING = """
import os, time
held, parent = bytearray(b"x" * 100_000_000), os.getpid()
other = b"y" * 1_000_000
files = [open("/dev/null") for _ in range(50)]
if os.fork():
    for start in range(0, len(held), len(other)):
        held[start : start + len(other)] = other
        time.sleep(0.05)
    time.sleep(60)
while os.getppid() == parent:
    time.sleep(0.1)
"""


def test_growth_of_a_process_that_grows(tmp_path):
    """A megabyte and a descriptor every tenth of a second, or slower on a busy machine."""
    samples, code = soak.watch([sys.executable, "-c", GROWING], 4, 0.05, tmp_path / "out.txt")
    assert code == -15
    warm = [s for s in samples if s["descriptors"] > 8]  # Python itself has fewer
    times = np.array([s["time"] for s in warm])
    memory, allocated, descriptors = (
        soak.growth(times, np.array([s[name] for s in warm]))
        for name in ("memory", "allocated", "descriptors")
    )
    assert memory["per_hour"] > 5 * memory["plus_minus"] > 0
    for grown in (memory, allocated):
        assert grown["per_hour"] / descriptors["per_hour"] == pytest.approx(1, abs=0.2)
    soak.draw(samples, 1, tmp_path / "soak.png")
    assert (tmp_path / "soak.png").stat().st_size < 150_000


def test_pages_that_are_no_longer_shared_are_not_allocated(tmp_path):
    samples, _ = soak.watch([sys.executable, "-c", UNSHARING], 5, 0.05, tmp_path / "out.txt")
    late = [s for s in samples if s["descriptors"] > 100]  # both were seen, the memory is shared
    memory, allocated = (late[-1][name] - late[0][name] for name in ("memory", "allocated"))
    assert memory > 10
    # Pages that are copied while the kernel counts them are seen twice or not at all.
    assert abs(allocated) < 0.2 * memory


def test_growth_and_its_interval():
    rng, times = np.random.default_rng(0), np.arange(0, 1500, 5.0)
    inside = 0
    for _ in range(100):
        fit = soak.growth(times, 700 + times / 60 + rng.normal(0, 5, len(times)))
        inside += abs(fit["per_hour"] - 60) < fit["plus_minus"]
    assert 88 <= inside <= 100 and fit["mean"] == pytest.approx(712.5, abs=1)
    still = soak.growth(times, np.full(len(times), 3.0))
    assert abs(still["per_hour"]) < 1e-9 and still["plus_minus"] < 1e-9


def test_a_run_that_ends_by_itself_is_no_soak(tmp_path):
    with pytest.raises(RuntimeError, match=r"ended by itself after .* exit code 3"):
        soak.watch([sys.executable, "-c", "raise SystemExit(3)"], 30, 0.1, tmp_path / "out.txt")


def test_copies_have_ids_of_their_own():
    coco = dict(
        images=[dict(id=4), dict(id=9)],
        annotations=[dict(id=1, image_id=9), dict(id=7, image_id=4)],
    )
    found = soak.copies(coco, 3)
    assert [i["id"] for i in found["images"]] == [4, 9, 14, 19, 24, 29]
    pairs = [(a["id"], a["image_id"]) for a in found["annotations"]]
    assert pairs == [(1, 9), (7, 4), (9, 19), (15, 14), (17, 29), (23, 24)]
