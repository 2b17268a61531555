# SPDX-License-Identifier: Apache-2.0
"""What the world can do to labeling, beside the kills and full disks of apis/test_labeling.py."""

import copy
import errno
import json
import multiprocessing
import os
import re
import shutil
import signal
import subprocess
import time

import pytest
import torch
from mmdet.registry import MODELS
from mmengine.fileio import LocalBackend

from mal_mmdet.apis import generate_labels
from mal_mmdet.datasets import box_crop_dataset, label_batch_sampler
from mal_mmdet.engine import stop_signals
from mal_mmdet.labeling import (
    LabelShards,
    LabelWriter,
    label_writer,
    read_coco,
    report_path,
    shard_folder,
    write_json,
)
from tests.conftest import tiny_config
from tests.forked import SERVER, begin


@pytest.fixture(scope="module")
def job(demo, tmp_path_factory):
    """Arguments of generate_labels: tiny network, weights, the demo's training boxes."""
    folder = tmp_path_factory.mktemp("job")
    cfg = tiny_config(demo, folder / "work", **{"log_level": "INFO"})
    cfg.model.crops_per_batch = 3
    cfg.model.thresholds = 0.5  # untrained probabilities lie here
    torch.manual_seed(0)
    model = MODELS.build(cfg.model)
    model.init_weights()
    torch.save(dict(state_dict=model.state_dict()), folder / "mal.pth")
    return cfg, folder / "mal.pth", demo / "boxes_train.json", demo / "train"


@pytest.fixture(scope="module")
def undisturbed(job, tmp_path_factory):
    out = tmp_path_factory.mktemp("undisturbed") / "labels.json"
    assert generate_labels(*job, out) == 0
    return out.read_bytes()


def signal_everyone():
    """As Slurm does, and the launcher of PyTorch on top."""
    workers = [str(worker.pid) for worker in multiprocessing.active_children()]
    pids = [*workers, str(os.getpid())]
    subprocess.run(["sh", "-c", 'kill -TERM "$@"', "sh", *pids], check=True)
    os.kill(os.getpid(), signal.SIGTERM)


def terminate():
    os.kill(os.getpid(), signal.SIGTERM)


def interrupt():
    os.kill(os.getpid(), signal.SIGINT)


def kill_worker():
    os.kill(multiprocessing.active_children()[0].pid, signal.SIGKILL)
    time.sleep(60)


def work(job, out, output, fault, in_merge, limit):
    """A labeling in a child, as tools/generate_labels.py --resume runs it."""
    begin(output, limit)
    where, name = (label_writer.ListWriter, "add") if in_merge else (LabelWriter, "process")
    original, calls = getattr(where, name), []

    def disturbed(self, *args):
        calls.append(args)
        if fault and len(calls) == 2:
            globals()[fault]()
        return original(self, *args)

    setattr(where, name, disturbed)
    with stop_signals.handled():
        generate_labels(*job, out, resume=True)


def label(job, out, fault=None, in_merge=False, limit=None, output=None):
    """Returns the exit code and what was printed, in a file beside ``out`` or in ``output``."""
    output = output or out.with_name(f"{out.name}.txt")
    child = SERVER.Process(target=work, args=(job, out, output, fault, in_merge, limit))
    child.start()
    child.join(120)
    child.kill()  # one that hangs
    return child.exitcode, output.read_text()


def with_workers(job):
    cfg = copy.deepcopy(job[0])
    cfg.test_dataloader.update(num_workers=2, persistent_workers=True)
    return (cfg, *job[1:])


def assert_resumes(job, out, undisturbed):
    assert generate_labels(*job, out, resume=True) == 0
    assert out.read_bytes() == undisturbed
    assert not shard_folder(out).exists() and not list(out.parent.glob(".*"))


def test_a_signal_writes_what_is_finished(job, undisturbed, tmp_path):
    """Long before a shard would be due; with workers that get the signal too."""
    out = tmp_path / "labels.json"
    code, text = label(with_workers(job), out, "signal_everyone")
    assert code == 143 and not out.exists()
    assert f"stopped; --resume goes on from {shard_folder(out)}" in text
    batches = label_batch_sampler.cut_batches(_boxes_per_image(job), 3)
    assert LabelShards(shard_folder(out)).finished_samples() == {*batches[0], *batches[1]}
    assert_resumes(job, out, undisturbed)


def _boxes_per_image(job):
    images = [ann["image_id"] for ann in read_coco(job[2])["annotations"]]
    return torch.tensor(images).unique_consecutive(return_counts=True)[1].numpy()


def test_a_signal_in_the_merge_ends_it_at_once(job, undisturbed, tmp_path):
    out = tmp_path / "labels.json"
    code, _ = label(job, out, "interrupt", in_merge=True)
    assert code == 130 and not out.exists() and not report_path(out).exists()
    assert not list(shard_folder(out).glob(".*"))
    assert len(LabelShards(shard_folder(out)).finished_samples()) == 8
    assert_resumes(job, out, undisturbed)


def test_a_signal_where_nothing_but_the_merge_is_left_ends_it_at_once(job, undisturbed, tmp_path):
    out = tmp_path / "labels.json"
    assert label(job, out, "interrupt", in_merge=True)[0] == 130
    code, _ = label(job, out, "terminate", in_merge=True)
    assert code == 143 and not out.exists()
    assert_resumes(job, out, undisturbed)


def test_a_killed_worker_ends_labeling_with_its_reason(job, undisturbed, tmp_path):
    out = tmp_path / "labels.json"
    code, text = label(with_workers(job), out, "kill_worker")
    assert code == 1 and not out.exists()
    assert re.search(r"DataLoader worker \(pid.*(killed by signal: Killed|exited unexpec)", text)
    assert_resumes(job, out, undisturbed)


def test_a_disk_that_is_full_at_the_report_replaces_nothing(job, tmp_path):
    """No image can be read: the report is long, the label file short."""
    coco = read_coco(job[2])
    for ann in coco["annotations"]:
        ann["note"] = "long" * 10000
    write_json(tmp_path / "boxes.json", coco)
    (tmp_path / "empty").mkdir()
    for image in coco["images"]:
        (tmp_path / "empty" / image["file_name"]).touch()
    job = (*job[:2], tmp_path / "boxes.json", tmp_path / "empty")
    out, other = tmp_path / "labels.json", tmp_path / "other.json"
    assert generate_labels(*job, other) == len(coco["annotations"])
    length = report_path(other).stat().st_size
    assert length > 100 * other.stat().st_size
    for path in (out, report_path(out)):
        path.write_text("of an earlier run")
    code, text = label(job, out, limit=length - 1)
    assert code == 1 and re.search("File too large.*labels cannot be written.*--resume", text)
    assert out.read_text() == report_path(out).read_text() == "of an earlier run"
    assert not list(shard_folder(out).glob(".*"))


@pytest.mark.parametrize("times", [1, 2])
def test_a_read_that_fails(job, undisturbed, tmp_path, monkeypatch, times):
    """Once: it is read again. Twice: the boxes go into the report, and are labeled by --resume."""
    out, left = tmp_path / "labels.json", [True] * times
    get = LocalBackend.get

    def fail(self, path):
        if str(path).endswith("00003.jpg") and left and left.pop():
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
        return get(self, path)

    monkeypatch.setattr(LocalBackend, "get", fail)
    monkeypatch.setattr(box_crop_dataset, "RETRY_SECONDS", 0)
    failed = generate_labels(*job, out)
    assert not left
    if times == 2:
        report = json.loads(report_path(out).read_text())["failed"]
        assert failed == len(report) > 0
        assert all("00003.jpg cannot be read (OSError: [Errno 116]" in f["problem"] for f in report)
        assert_resumes(job, out, undisturbed)
    assert out.read_bytes() == undisturbed


def test_a_missing_image_is_not_waited_for(job, tmp_path, monkeypatch):
    monkeypatch.setattr(box_crop_dataset, "RETRY_SECONDS", -1)  # which sleep refuses
    shutil.copytree(job[3], tmp_path / "images")
    (tmp_path / "images/00003.jpg").unlink()
    assert generate_labels(*job[:3], tmp_path / "images", tmp_path / "labels.json") > 0


def test_three_ranks_write_the_bytes_of_one(job, undisturbed, tmp_path, monkeypatch):
    """One after the other; each deals as if the others were at work at the same time."""
    out = tmp_path / "labels.json"
    batches = label_batch_sampler.cut_batches(_boxes_per_image(job), 3)
    monkeypatch.setattr(label_batch_sampler.LabelBatchSampler, "unfinished", batches)
    for rank in (2, 1, 0):
        monkeypatch.setattr(label_batch_sampler, "get_dist_info", lambda rank=rank: (rank, 3))
        if rank:
            with pytest.raises(RuntimeError, match="are not in"):
                generate_labels(*job, out, resume=True)
    assert generate_labels(*job, out, resume=True) == 0
    assert out.read_bytes() == undisturbed


def test_the_loaders_batches_and_workers_change_no_byte(job, undisturbed, tmp_path):
    cfg = with_workers(job)[0]
    cfg.test_dataloader.batch_size = 5
    assert generate_labels(cfg, *job[1:], tmp_path / "labels.json") == 0
    assert (tmp_path / "labels.json").read_bytes() == undisturbed


@pytest.mark.parametrize("crops", [1, 2, 32])
def test_the_crops_predicted_together_change_no_byte(job, undisturbed, tmp_path, crops):
    cfg = copy.deepcopy(job[0])
    cfg.model.crops_per_batch = crops
    assert generate_labels(cfg, *job[1:], tmp_path / "labels.json") == 0
    assert (tmp_path / "labels.json").read_bytes() == undisturbed
