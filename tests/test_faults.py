# SPDX-License-Identifier: Apache-2.0
"""What the world can do to a training: docs/reliability.md has the table."""

import copy
import errno
import multiprocessing
import os
import re
import signal
import subprocess
import time
from pathlib import Path

import pytest
import torch
from mmdet.registry import HOOKS
from mmengine.config import Config
from mmengine.fileio import LocalBackend
from mmengine.hooks import Hook
from mmengine.runner import Runner

from mal_mmdet.apis import latest_checkpoint, resume_latest, use_safe_checkpoints
from mal_mmdet.apis.launch import damage
from mal_mmdet.datasets import box_crop_dataset
from mal_mmdet.engine import INTERRUPTED, stop_signals
from tests.conftest import ROOT, forget_runners, tiny_config
from tests.forked import ranks, train
from tests.test_distributed import FSDP
from tests.test_training import assert_same

MIDDLE = 8  # iterations that are over in the middle of the second epoch


def signal_process():
    os.kill(os.getpid(), signal.SIGTERM)


def interrupt_process():
    os.kill(os.getpid(), signal.SIGINT)


def signal_everyone():
    """As Slurm does, and the launcher of PyTorch on top."""
    workers = [str(worker.pid) for worker in multiprocessing.active_children()]
    subprocess.run(["sh", "-c", 'kill -TERM "$@"', "sh", *workers], check=True)
    time.sleep(0.2)
    os.kill(os.getpid(), signal.SIGTERM)
    os.kill(os.getpid(), signal.SIGTERM)


def signal_twice():
    stop_signals._handle(signal.SIGTERM, None)
    stop_signals._since -= 3  # seconds ago
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(60)


def kill_process():
    os.kill(os.getpid(), signal.SIGKILL)


def fail():
    raise RuntimeError("an error of this rank")


def kill_worker():
    os.kill(multiprocessing.active_children()[0].pid, signal.SIGKILL)
    time.sleep(60)


@HOOKS.register_module()
class FaultHook(Hook):
    """Lets something happen within an iteration, on one rank or on all."""

    def __init__(self, fault, rank=None, iteration=MIDDLE, epoch=False):
        self.fault, self.rank, self.iteration = fault, rank, None if epoch else iteration

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        if runner.iter + 1 == self.iteration and self.rank in (None, runner.rank):
            globals()[self.fault]()

    def after_train_epoch(self, runner):
        if self.iteration is None:
            globals()[self.fault]()


def config(demo, work_dir, fault=None, **options):
    cfg = tiny_config(demo, work_dir, **{"log_level": "INFO", **options})
    if fault:
        cfg.custom_hooks.append(dict(type="FaultHook", fault=fault))
    return cfg


def load(path):
    return torch.load(path, weights_only=False)


@pytest.fixture(scope="module")
def undisturbed(demo, tmp_path_factory):
    work_dir = tmp_path_factory.mktemp("undisturbed")
    runner = Runner.from_cfg(config(demo, work_dir, log_level="WARNING"))
    runner.train()
    length = len(runner.train_dataloader)
    assert length < MIDDLE < 2 * length
    return load(work_dir / "epoch_2.pth")


def assert_resumes_as_undisturbed(cfg, undisturbed, epochs=(1, 2)):
    cfg = copy.deepcopy(cfg)
    cfg.custom_hooks = [hook for hook in cfg.custom_hooks if hook.type != "FaultHook"]
    resume_latest(cfg)
    assert cfg.resume
    Runner.from_cfg(cfg).train()
    folder = Path(cfg.work_dir)
    found = load(folder / "epoch_2.pth")
    for key in ("state_dict", "optimizer", "param_schedulers"):
        assert_same(undisturbed[key], found[key], key)
    assert found["meta"]["iter"] == undisturbed["meta"]["iter"]
    assert sorted(p.name for p in folder.glob("*.pth")) == [f"epoch_{n}.pth" for n in epochs]


def test_a_signal_saves_after_the_iteration(demo, tmp_path, undisturbed):
    cfg = config(demo, tmp_path / "work", "signal_process")
    assert train(cfg, tmp_path / "output.txt") == 143
    saved = load(tmp_path / "work" / INTERRUPTED)
    assert saved["meta"]["iter"] == MIDDLE and saved["meta"]["epoch"] == 1
    text = (tmp_path / "output.txt").read_text()
    assert "saving after this iteration; a second signal ends at once" in text
    assert f"--resume goes on from {tmp_path / 'work' / INTERRUPTED}" in text
    assert_resumes_as_undisturbed(cfg, undisturbed)


def test_a_training_takes_the_place_of_no_interrupted_one(demo, tmp_path, capsys):
    cfg = config(demo, tmp_path / "work", "signal_process")
    assert train(cfg, tmp_path / "output.txt") == 143
    left = (tmp_path / "work" / INTERRUPTED).read_bytes()
    cfg = config(demo, tmp_path / "work", **{"train_cfg.max_epochs": 1})
    with pytest.raises(RuntimeError, match=rf"{INTERRUPTED} is of a training that was interrupted"):
        Runner.from_cfg(copy.deepcopy(cfg)).train()
    assert (tmp_path / "work" / INTERRUPTED).read_bytes() == left
    (tmp_path / "work" / INTERRUPTED).unlink()
    forget_runners()
    Runner.from_cfg(cfg).train()
    assert "work holds epoch_1.pth of an earlier training" in capsys.readouterr().out


def test_a_training_of_another_network_is_not_resumed(demo, tmp_path):
    cfg = config(demo, tmp_path / "work", **{"train_cfg.max_epochs": 1})
    Runner.from_cfg(copy.deepcopy(cfg)).train()
    before = (tmp_path / "work/epoch_1.pth").read_bytes()
    for key, value, words in (
        ("model.network.decoder.channels", 8, r"pixel_head\S+ is \(16, 32, 3, 3\)"),
        ("model.network.backbone.arch.num_layers", 2, r"layers\.1\S+ is not there in the check"),
    ):
        other = copy.deepcopy(cfg)
        other.merge_from_dict({key: value, "train_cfg.max_epochs": 2})
        resume_latest(other)
        with pytest.raises(ValueError, match=f"another network cannot be resumed: .*{words}"):
            Runner.from_cfg(other).train()
        forget_runners()
    assert (tmp_path / "work/epoch_1.pth").read_bytes() == before


def test_workers_of_the_data_loader_leave_signals_to_their_parent(demo, tmp_path, undisturbed):
    workers = {"train_dataloader.num_workers": 2, "train_dataloader.persistent_workers": True}
    cfg = config(demo, tmp_path / "work", "signal_everyone", **workers)
    assert train(cfg, tmp_path / "output.txt") == 143
    assert_resumes_as_undisturbed(cfg, undisturbed)


def test_a_second_signal_ends_at_once(demo, tmp_path):
    cfg = config(demo, tmp_path / "work", "signal_twice")
    assert train(cfg, tmp_path / "output.txt") == 143
    assert not (tmp_path / "work" / INTERRUPTED).exists()


def test_interrupted_again_and_in_the_last_iteration_of_an_epoch(demo, tmp_path, undisturbed):
    cfg = config(demo, tmp_path / "work")
    length = undisturbed["meta"]["iter"] // 2
    for iteration in (2, 4, length, length + 1):
        cfg.custom_hooks.append(
            dict(type="FaultHook", fault="interrupt_process", iteration=iteration)
        )
        assert train(cfg, tmp_path / f"{iteration}.txt") == 130
        cfg.custom_hooks.pop()
        assert load(tmp_path / "work" / INTERRUPTED)["meta"]["iter"] == iteration
    assert_resumes_as_undisturbed(cfg, undisturbed)


@pytest.mark.parametrize("iterations", [False, True])
def test_a_signal_after_the_last_iteration_leaves_nothing_to_resume(demo, tmp_path, iterations):
    cfg = config(demo, tmp_path / "work", **{"train_cfg.max_epochs": 1})
    cfg.val_dataloader, cfg.val_evaluator = cfg.test_dataloader, cfg.test_evaluator
    cfg.val_cfg = dict(type="ValLoop")
    if iterations:
        cfg.train_cfg = dict(type="IterBasedTrainLoop", max_iters=2, val_interval=2)
        cfg.default_hooks.checkpoint.by_epoch = False
        cfg.param_scheduler = []
    cfg.custom_hooks.append(dict(type="FaultHook", fault="signal_process", epoch=True))
    assert train(cfg, tmp_path / "output.txt") == 0
    assert "mask/miou" in (tmp_path / "output.txt").read_text()
    assert len(list((tmp_path / "work").glob("*.pth"))) == 1 + iterations
    assert not (tmp_path / "work" / INTERRUPTED).exists()


@pytest.mark.parametrize("interval", [1, 2])
def test_a_signal_while_an_epoch_is_saved_does_not_wait_for_validation(
    demo, tmp_path, undisturbed, interval
):
    """Whether a checkpoint is due then or not."""
    cfg = config(demo, tmp_path / "work", **{"default_hooks.checkpoint.interval": interval})
    cfg.custom_hooks.append(dict(type="FaultHook", fault="signal_process", epoch=True))
    assert train(cfg, tmp_path / "output.txt") == 143
    name = "epoch_1.pth" if interval == 1 else INTERRUPTED
    saved = load(tmp_path / "work" / name)["meta"]
    assert saved["epoch"] == 1 and saved["iter"] == undisturbed["meta"]["iter"] // 2
    cfg.default_hooks.checkpoint.interval = 1
    assert_resumes_as_undisturbed(cfg, undisturbed, epochs=[2] if interval == 2 else [1, 2])


def test_a_signal_waits_for_the_step_of_accumulated_gradients(demo, tmp_path):
    options = {"optim_wrapper.accumulative_counts": 2}
    runner = Runner.from_cfg(config(demo, tmp_path / "whole", log_level="WARNING", **options))
    runner.train()
    cfg = config(demo, tmp_path / "work", **options)
    cfg.custom_hooks.append(dict(type="FaultHook", fault="signal_process", iteration=MIDDLE - 1))
    assert train(cfg, tmp_path / "output.txt") == 143
    assert load(tmp_path / "work" / INTERRUPTED)["meta"]["iter"] == MIDDLE
    assert_resumes_as_undisturbed(cfg, load(tmp_path / "whole/epoch_2.pth"))


@pytest.mark.parametrize("seed", [0, 5, None])
def test_killed_after_a_checkpoint_in_the_middle_of_an_epoch(demo, tmp_path, undisturbed, seed):
    """Checkpoints that are counted in iterations, in a training that is counted in epochs.

    It goes on with its own seed, whatever the resuming command has.
    """
    options = {"default_hooks.checkpoint.by_epoch": False, "default_hooks.checkpoint.interval": 3}
    cfg = config(demo, tmp_path / "work", "kill_process", **options)
    assert train(cfg, tmp_path / "output.txt") == -signal.SIGKILL
    saved = tmp_path / f"work/iter_{(MIDDLE - 1) // 3 * 3}.pth"
    assert saved.exists()
    cfg = config(demo, tmp_path / "work", **options, randomness=dict(seed=seed))
    resume_latest(cfg)
    assert cfg.load_from == str(saved)
    runner = Runner.from_cfg(cfg)
    runner.train()
    assert runner.iter == undisturbed["meta"]["iter"]
    assert_same(undisturbed["state_dict"], runner.model.state_dict(), "state_dict")


def test_a_killed_worker_ends_the_training_with_its_reason(demo, tmp_path, undisturbed):
    workers = {"train_dataloader.num_workers": 2, "train_dataloader.persistent_workers": True}
    cfg = config(demo, tmp_path / "work", "kill_worker", **workers)
    assert train(cfg, tmp_path / "output.txt") == 1
    assert re.search(
        r"DataLoader worker \(pid\(?s?\)? \d+\) (is killed by signal: Killed|exited unexpectedly)",
        (tmp_path / "output.txt").read_text(),
    )
    assert_resumes_as_undisturbed(cfg, undisturbed)


def test_killed_then_on_a_full_disk_then_resumed(demo, tmp_path, undisturbed):
    """The first epoch's checkpoint is there; the second's is over a limit on the size of files."""
    cfg = config(demo, tmp_path / "work", "kill_process")
    cfg.default_hooks.checkpoint.max_keep_ckpts = 1
    assert train(cfg, tmp_path / "killed.txt") == -signal.SIGKILL
    folder, whole = tmp_path / "work", tmp_path / "work/epoch_1.pth"
    before = whole.read_bytes()
    (folder / ".epoch_2.pth.x7").write_bytes(b"half")  # what it was writing
    stopped = copy.deepcopy(cfg)
    stopped.custom_hooks[-1].fault = "signal_process"
    assert train(stopped, tmp_path / "stopped.txt", limit=len(before) // 2) == 1
    text = (tmp_path / "stopped.txt").read_text()
    assert re.search(rf"File too large.*{INTERRUPTED} cannot be written.*--resume", text)
    assert [path.name for path in folder.glob("*.pth")] == ["epoch_1.pth"]
    cfg.custom_hooks.pop()
    assert train(cfg, tmp_path / "full.txt", limit=len(before) // 2) == 1
    text = (tmp_path / "full.txt").read_text()
    assert re.search(
        r"File too large.*cannot be written. The checkpoints before it stay; .*--resume", text
    )
    assert [path.name for path in folder.glob("*.pth")] == ["epoch_1.pth"]
    assert whole.read_bytes() == before and not list(folder.glob(".*"))
    cfg.default_hooks.checkpoint.max_keep_ckpts = 2
    assert_resumes_as_undisturbed(cfg, undisturbed)


def test_a_read_that_fails_once_changes_nothing(demo, tmp_path, undisturbed, monkeypatch):
    """Of every image, in both epochs or one; the second time all is well."""
    get, failed = LocalBackend.get, set()

    def fail_once(self, path):
        if str(path).endswith(".jpg") and path not in failed:
            failed.add(path)
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return get(self, path)

    monkeypatch.setattr(LocalBackend, "get", fail_once)
    monkeypatch.setattr(box_crop_dataset, "RETRY_SECONDS", 0)
    Runner.from_cfg(config(demo, tmp_path, log_level="WARNING")).train()
    assert len(failed) == 8
    found = load(tmp_path / "epoch_2.pth")
    for key in ("state_dict", "optimizer"):
        assert_same(undisturbed[key], found[key], key)


@pytest.mark.parametrize("name", ["epoch_2.pth", "best_mask_miou_epoch_2.pth"])
def test_no_file_is_removed_before_its_successor_is_there(demo, tmp_path, monkeypatch, name):
    """Also of the best checkpoint."""
    cfg = config(demo, tmp_path, **{"default_hooks.checkpoint.max_keep_ckpts": 1})
    cfg.val_dataloader, cfg.val_cfg = cfg.test_dataloader, dict(type="ValLoop")
    cfg.val_evaluator = cfg.test_evaluator
    cfg.default_hooks.checkpoint.update(save_best="mask/miou", rule="greater")
    put = LocalBackend.put

    def fill(self, obj, path):
        if f".{name}." in path:
            put(self, obj[: len(obj) // 2], path)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        put(self, obj, path)

    monkeypatch.setattr(LocalBackend, "put", fill)
    # The second epoch's masks are the best so far, whatever they are.
    scores = iter([0.1, 0.2])
    monkeypatch.setattr(
        "mal_mmdet.evaluation.MaskIoUMetric.compute_metrics", lambda *args: {"miou": next(scores)}
    )
    with pytest.raises(OSError, match=r"No space left.*make room, then go on with --resume"):
        Runner.from_cfg(cfg).train()
    first = "best_mask_miou_epoch_1.pth"
    kept = {first, "epoch_1.pth"} if name == "epoch_2.pth" else {first, "epoch_2.pth"}
    assert {path.name for path in tmp_path.glob("*.pth")} == kept
    assert all(load(tmp_path / path)["state_dict"] for path in kept)
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize("damaged", ["cut", "flipped", "emptied"])
def test_a_damaged_checkpoint_is_passed_over(demo, tmp_path, undisturbed, damaged):
    for epoch in (1, 2):
        torch.save(dict(state_dict=undisturbed["state_dict"]), tmp_path / f"epoch_{epoch}.pth")
        os.utime(tmp_path / f"epoch_{epoch}.pth", (epoch, epoch))
    torch.save({}, tmp_path / "best_x_epoch_2.pth")
    (tmp_path / "last_checkpoint").write_text(str(tmp_path / "epoch_2.pth"))
    assert latest_checkpoint(tmp_path) == tmp_path / "epoch_2.pth"
    content = bytearray((tmp_path / "epoch_2.pth").read_bytes())
    content[len(content) // 2] ^= 1
    content = dict(cut=content[:-100], flipped=content, emptied=b"")[damaged]
    (tmp_path / "epoch_2.pth").write_bytes(content)
    cfg = Config(dict(work_dir=str(tmp_path)))
    resume_latest(cfg)
    assert cfg.load_from == str(tmp_path / "epoch_1.pth") and cfg.resume
    (tmp_path / "last_checkpoint").write_text("")  # a disk that was full
    assert latest_checkpoint(tmp_path) == tmp_path / "epoch_1.pth"
    (tmp_path / "epoch_1.pth").write_bytes(content)
    with pytest.raises(
        ValueError, match=r"all checkpoints in .* are damaged \(epoch_\d.pth, epoch_\d.pth\)"
    ):
        latest_checkpoint(tmp_path)


def test_checkpoints_of_other_names_are_found(tmp_path):
    """A config's ``filename_tmpl``; what is published has no state to resume from."""
    for name in ("mal_2.pth", "epoch_2-0badc0de.pth"):
        torch.save({}, tmp_path / name)
    (tmp_path / "last_checkpoint").write_text(str(tmp_path / "mal_2.pth"))
    assert latest_checkpoint(tmp_path) == tmp_path / "mal_2.pth"
    (tmp_path / "last_checkpoint").write_text("/moved/from/mal_2.pth")
    assert latest_checkpoint(tmp_path) == tmp_path / "mal_2.pth"
    torch.save({}, tmp_path / "mal_3.pt")
    (tmp_path / "last_checkpoint").write_text(str(tmp_path / "mal_3.pt"))
    assert latest_checkpoint(tmp_path) == tmp_path / "mal_3.pt"
    (tmp_path / "last_checkpoint").unlink()
    assert latest_checkpoint(tmp_path) is None


def test_any_wrong_byte_of_a_checkpoint_is_damage_or_none(tmp_path):
    """Headers of a zip file can ask for things that its reader refuses in many ways."""
    path = tmp_path / "epoch_1.pth"
    torch.save(dict(weight=torch.ones(3)), path)
    whole, found = path.read_bytes(), 0
    for place in range(len(whole)):
        for bits in (1, 4, 128):
            path.write_bytes(whole[:place] + bytes([whole[place] ^ bits]) + whole[place + 1 :])
            found += damage(path) is not None
    assert found > len(whole)


def test_a_work_dir_that_was_moved_keeps_its_checkpoints(tmp_path):
    work_dir, pointer = tmp_path / "work", tmp_path / "work/last_checkpoint"
    work_dir.mkdir()
    for epoch in (3, 2, 1):
        path = work_dir / f"epoch_{epoch}.pth"
        torch.save({}, path)
        os.utime(path, (10 - epoch, 10 - epoch))  # the first epoch's is the newest
    (tmp_path / "other").mkdir()
    torch.save({}, tmp_path / "other/epoch_7.pth")
    for named, expected in {
        "/old/place/epoch_2.pth": "work/epoch_2.pth",
        "work_dirs/x/epoch_3.pth": "work/epoch_3.pth",
        "work_d": "work/epoch_1.pth",
        str(tmp_path / "other/epoch_8.pth"): "other/epoch_7.pth",
    }.items():
        pointer.write_text(named)
        assert latest_checkpoint(work_dir) == tmp_path / expected
    pointer.write_bytes(b"\xff\xfe")
    assert latest_checkpoint(work_dir) == work_dir / "epoch_1.pth"
    for path in work_dir.glob("*.pth"):
        path.unlink()
    with pytest.raises(ValueError, match="which is not there, nor another checkpoint"):
        latest_checkpoint(work_dir)
    pointer.unlink()
    assert latest_checkpoint(work_dir) is None


def test_without_a_checkpoint_training_starts_as_the_config_says(tmp_path):
    cfg = Config(dict(work_dir=str(tmp_path), load_from="weights.pth"))
    resume_latest(cfg)
    assert cfg.load_from == "weights.pth" and not cfg.get("resume")


def test_any_config_gets_safe_checkpoints():
    stock = Config.fromfile(ROOT / "configs/mask_rcnn/mask-rcnn_r50_fpn_1x_coco-mal.py")
    for cfg in (stock, Config(), Config(dict(default_hooks=dict(checkpoint=None)))):
        use_safe_checkpoints(cfg)
        hook = cfg.default_hooks.checkpoint
        assert hook is None or (hook.type, hook.interval) == ("SafeCheckpointHook", 1)


def test_a_sampler_without_seeds_keeps_its_last_checkpoint(demo, tmp_path):
    sampler = {"train_dataloader.sampler": dict(_delete_=True, type="DefaultSampler")}
    cfg = config(demo, tmp_path / "work", "signal_process", **sampler)
    assert train(cfg, tmp_path / "output.txt") == 143
    assert "whose samples DefaultSampler cannot deal" in (tmp_path / "output.txt").read_text()
    assert [p.name for p in (tmp_path / "work").glob("*.pth")] == ["epoch_1.pth"]


@pytest.fixture(scope="module")
def two_ranks(demo, tmp_path_factory):
    """A config for two ranks, and what they learn without disturbance."""
    folder = tmp_path_factory.mktemp("two_ranks")
    cfg = config(demo, folder / "work")
    cfg.train_dataloader.batch_size = 2
    codes, outputs = ranks(cfg, folder)
    assert codes == [0, 0], outputs
    return cfg, load(folder / "work/epoch_2.pth")


@pytest.mark.parametrize("sharded", [False, True])
def test_ranks_stop_after_the_same_iteration(two_ranks, tmp_path, sharded):
    """Only one of them gets the signal; sharded or not, they end and resume together."""
    cfg, undisturbed = two_ranks
    cfg = copy.deepcopy(cfg)
    cfg.work_dir = str(tmp_path / "work")
    if sharded:
        strategy = Config.fromfile(FSDP)
        cfg.runner_type, cfg.strategy = strategy.runner_type, strategy.strategy
    cfg.custom_hooks.append(dict(type="FaultHook", fault="signal_process", rank=1))
    codes, outputs = ranks(cfg, tmp_path)
    cfg.custom_hooks.pop()
    assert codes == [143, 143], outputs
    assert load(tmp_path / "work" / INTERRUPTED)["meta"]["iter"] == MIDDLE
    codes, outputs = ranks(cfg, tmp_path)
    assert codes == [0, 0], outputs
    found = load(tmp_path / "work/epoch_2.pth")["state_dict"]
    if sharded:  # sums in another order
        for key, value in undisturbed["state_dict"].items():
            torch.testing.assert_close(found[key], value, rtol=1e-3, atol=1e-4, msg=key)
    else:
        assert_same(undisturbed["state_dict"], found)


@pytest.mark.parametrize("fault, code", [("kill_process", -signal.SIGKILL), ("fail", 1)])
def test_a_rank_that_dies_ends_the_other(two_ranks, tmp_path, fault, code):
    cfg = copy.deepcopy(two_ranks[0])
    cfg.work_dir = str(tmp_path / "work")
    cfg.custom_hooks.append(dict(type="FaultHook", fault=fault, rank=1))
    codes, outputs = ranks(cfg, tmp_path)
    assert codes == [1, code], outputs
    assert (fault == "fail") == ("RuntimeError: an error of this rank" in outputs[1])
    assert re.search("Connection (reset|closed) by peer|Broken pipe", outputs[0])
