# SPDX-License-Identifier: Apache-2.0
"""Training and labeling on a disk that is full, at whichever of their writes that happens."""

import copy
import shutil
import signal
import subprocess
from pathlib import Path

import pytest

from mal_mmdet.apis.launch import damage
from mal_mmdet.labeling import shard_folder
from tests import test_faults, test_label_faults
from tests.test_faults import config, load, train
from tests.test_label_faults import label
from tests.test_training import assert_same

# Fixtures of theirs: a training and labels without disturbance.
weights = test_faults.undisturbed
job = test_label_faults.job
labels = test_label_faults.undisturbed

PAGE, LARGE = 4, 1_000_000  # kilobytes; what such a disk is given in, and enough


class Disk:
    """A file system in memory, of a size that can be changed."""

    def __init__(self, folder: Path):
        self.folder = folder
        folder.mkdir()
        self._mount(f"size={LARGE}k")

    def _mount(self, options):
        command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(self.folder)]
        subprocess.run(command, check=True, capture_output=True, text=True)

    def resize(self, kilobytes):
        self._mount(f"remount,size={kilobytes}k")

    def used(self):
        usage = shutil.disk_usage(self.folder)
        return usage.used // 1024

    def clear(self):
        for path in self.folder.iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()


@pytest.fixture
def disk(tmp_path):
    try:
        found = Disk(tmp_path / "disk")
    except (OSError, subprocess.CalledProcessError) as error:
        reason = getattr(error, "stderr", None) or error
        pytest.skip(f"only who may mount a disk can have a full one: {reason}")
    yield found
    subprocess.run(["umount", str(found.folder)], check=True)


def test_a_training_on_a_full_disk(demo, tmp_path, disk, weights):
    """Full at the first file, at ``last_checkpoint``, in the second epoch's checkpoint."""
    cfg = config(demo, disk.folder / "work", "kill_process")
    cfg.custom_hooks[-1]["iteration"] = weights["meta"]["iter"] // 2 + 1
    assert train(cfg, tmp_path / "killed.txt") == -signal.SIGKILL
    cfg.custom_hooks.pop()
    first_epoch = disk.used()
    for size, checkpoints in {PAGE: [], first_epoch - PAGE: [1], first_epoch + 100: [1]}.items():
        disk.clear()
        disk.resize(size)
        output = tmp_path / f"{size}.txt"
        assert train(cfg, output) == 1
        assert "No space left on device" in output.read_text()
        found = sorted(Path(cfg.work_dir).glob("*.pth"))
        assert [path.name for path in found] == [f"epoch_{epoch}.pth" for epoch in checkpoints]
        assert not any(map(damage, found)) and not list(Path(cfg.work_dir).glob(".*"))

        disk.resize(LARGE)
        assert train(cfg, tmp_path / "resumed.txt") == 0
        text = (tmp_path / "resumed.txt").read_text()
        assert ("resumed epoch: 1, iter: 5" in text) == bool(found)
        last = load(Path(cfg.work_dir) / "epoch_2.pth")
        for key in ("state_dict", "optimizer", "param_schedulers"):
            assert_same(weights[key], last[key], key)


def test_labeling_on_a_full_disk(tmp_path, disk, job, labels):
    """Full at any of: log, lock, fingerprint, shards, report, label file."""
    cfg = copy.deepcopy(job[0])
    cfg.work_dir = str(disk.folder / "work")
    job, out = (cfg, *job[1:]), disk.folder / "out/labels.json"
    out.parent.mkdir()
    assert label(job, out, output=tmp_path / "whole.txt")[0] == 0
    used = disk.used()
    for size in range(PAGE, used, max(PAGE, used // 5 // PAGE * PAGE)):
        disk.clear()
        out.parent.mkdir()
        disk.resize(size)
        code, text = label(job, out, output=tmp_path / f"{size}.txt")
        assert code == 1 and "No space left on device" in text
        disk.resize(LARGE)
        assert label(job, out, output=tmp_path / "resumed.txt")[0] == 0
        assert out.read_bytes() == labels and not shard_folder(out).exists()
