# SPDX-License-Identifier: Apache-2.0
"""Training and labeling on a disk that is full, at whichever of their writes that happens."""

import copy
import re
import resource
import shutil
import signal
import subprocess
from pathlib import Path

import pytest

from mal_mmdet.apis.launch import damage
from mal_mmdet.labeling import shard_folder
from tests import test_faults, test_label_faults
from tests.forked import train
from tests.test_faults import config, load
from tests.test_label_faults import label
from tests.test_training import assert_same

# Fixtures of theirs: a training and labels without disturbance.
weights = test_faults.undisturbed
job = test_label_faults.job
labels = test_label_faults.undisturbed

PAGE, LARGE = resource.getpagesize() // 1024, 1_000_000  # kilobytes: least, and enough


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
    subprocess.run(["umount", "-l", str(found.folder)], check=True)


def functions(text):
    """Names of those that an error came through."""
    return set(re.findall(r'File ".*", line \d+, in (\w+)', text))


def test_a_training_on_a_full_disk(demo, tmp_path, disk, weights):
    """Full at configs, log and scalars, at ``last_checkpoint``, in the second checkpoint."""
    cfg, output, reached = config(demo, disk.folder / "work"), tmp_path / "output.txt", set()
    # One of iteration 0 does nothing, but takes its place in configs and logs.
    cfg.custom_hooks.append(dict(type="FaultHook", fault="kill_process", iteration=0))
    for size in range(PAGE, 15 * PAGE, PAGE):
        disk.clear()
        disk.resize(size)
        output.unlink(missing_ok=True)
        assert train(cfg, output) == 1
        assert "No space left on device" in output.read_text()
        assert not list(Path(cfg.work_dir).glob("*.pth"))
        reached |= functions(output.read_text())
    assert reached >= {"add_config", "dump_config", "add_scalars", "put"}

    killed = copy.deepcopy(cfg)
    iteration = weights["meta"]["iter"] // 2 + 1
    killed.custom_hooks[-1].iteration = iteration
    disk.clear()
    disk.resize(LARGE)
    assert train(killed, tmp_path / "killed.txt") == -signal.SIGKILL
    first_epoch = disk.used()
    for size, name in {first_epoch - PAGE: "last_checkpoint", first_epoch + 100: "put"}.items():
        disk.clear()
        disk.resize(size)
        output.unlink()
        assert train(cfg, output) == 1
        assert "No space left on device" in output.read_text()
        # MMEngine's name of what writes it is that of a hundred others.
        pointer = Path(cfg.work_dir, "last_checkpoint")
        unwritten = not pointer.exists() or not pointer.read_text()
        assert unwritten if name == "last_checkpoint" else name in functions(output.read_text())
        (found,) = Path(cfg.work_dir).glob("*.pth")
        assert found.name == "epoch_1.pth" and not damage(found)
        assert not list(Path(cfg.work_dir).glob(".*"))

        disk.resize(LARGE)
        output.unlink()
        assert train(cfg, output) == 0
        assert "resumed epoch: 1, iter: 5" in output.read_text()
        last = load(Path(cfg.work_dir) / "epoch_2.pth")
        for key in ("state_dict", "optimizer", "param_schedulers"):
            assert_same(weights[key], last[key], key)


def test_labeling_on_a_full_disk(tmp_path, disk, job, labels):
    """Full at fingerprint, shard, report or label file, and each time resumed with a page more."""
    out, output, reached, size = disk.folder / "labels.json", tmp_path / "output.txt", [], PAGE
    (disk.folder / "ballast").write_bytes(b"x" * 1024 * PAGE)
    while True:
        disk.resize(size)
        code, text = label(job, out, output=output)
        if code == 0:
            break
        assert code == 1 and "No space left on device" in text and not out.exists()
        reached.append(functions(text))
        size += PAGE
    assert out.read_bytes() == labels and not shard_folder(out).exists()
    names = ("_take_over", "_write_shard", "compute_metrics")
    assert all(any(name in found for found in reached) for name in names)


def test_the_log_of_labeling_on_a_full_disk(tmp_path, disk, job, labels):
    cfg, output, reached = copy.deepcopy(job[0]), tmp_path / "output.txt", set()
    cfg.work_dir = str(disk.folder / "work")
    for size in range(PAGE, 8 * PAGE, PAGE):
        disk.clear()
        disk.resize(size)
        code, text = label((cfg, *job[1:]), tmp_path / "labels.json", output=output)
        assert code == 1 and "No space left on device" in text
        reached |= functions(text)
    assert reached >= {"add_config", "dump_config"}
    disk.resize(LARGE)
    assert label((cfg, *job[1:]), tmp_path / "labels.json", output=output)[0] == 0
    assert (tmp_path / "labels.json").read_bytes() == labels
