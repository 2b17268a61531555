# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import copy
import itertools
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from mmdet.registry import HOOKS
from mmengine.dist import all_reduce, get_world_size, is_main_process
from mmengine.fileio import LocalBackend, register_backend
from mmengine.hooks import CheckpointHook
from mmengine.runner import Runner
from mmengine.runner._flexible_runner import FlexibleRunner
from mmengine.runner.checkpoint import get_state_dict

from mal_mmdet.datasets import SeededSampler
from mal_mmdet.labeling import replacing, write_text

from .mean_teacher_hook import optimizer_has_stepped
from .signals import stop_signals

INTERRUPTED = "interrupted.pth"
"""Name of the checkpoint that a signal makes."""

SAMPLES_DONE = "samples_done_in_epoch"


@contextmanager
def whole_checkpoint(path: str | Path) -> Iterator[str]:
    """:func:`replacing`, for checkpoints.

    Raises:
        OSError: It cannot be written; says what to do.
    """
    try:
        with replacing(path) as temporary:
            yield temporary
    except OSError as error:
        raise OSError(
            error.errno,
            f"{error.strerror or error}: {path} cannot be written. The checkpoints before it "
            "stay; mend that, or make room, then go on with --resume",
        ) from error


@register_backend("atomic")
class AtomicBackend(LocalBackend):
    """Local files that appear under their name when they are whole and on the disk."""

    def put(self, obj: bytes, filepath: str | Path) -> None:
        """Writes a file; see :func:`whole_checkpoint`."""
        with whole_checkpoint(filepath) as temporary:
            super().put(obj, temporary)


def check_weights(runner: Runner) -> None:
    """Looks at all weights, and BatchNorm's statistics, before they replace sound ones on disk.

    Raises:
        FloatingPointError: One is NaN or infinite; says which.
    """
    buffers = runner.model.named_buffers()
    statistics = ((name, b) for name, b in buffers if "running_" in name)
    for name, weight in itertools.chain(runner.model.named_parameters(), statistics):
        if not weight.isfinite().all():
            raise FloatingPointError(
                f"{name} is not finite: no checkpoint of it is written, those before stay. The "
                "loss was finite, its gradient was not. Go on from there with --resume, and with a "
                "lower learning rate or in float32 if it happens again"
            )


@HOOKS.register_module()
class SafeCheckpointHook(CheckpointHook):
    """MMEngine's checkpoints, never half of one, and one more when the process has to stop.

    - A checkpoint is written to a temporary name and renamed. Those that it makes outdated are
      removed after that, not before.
    - Weights that are not finite are not written: a training would resume from them for ever.
    - After SIGTERM or SIGINT (:class:`StopSignals`) all ranks end with the same
      iteration, one in which the optimizer steps, ``interrupted.pth`` is written, and the exit code
      is 128 + the signal. A resumed training goes on with the next sample. That needs a
      :class:`SeededSampler`, or a loop that counts iterations. Otherwise the process ends without a
      new checkpoint.

    Args:
        backend_args: Of the storage; without it local files are written as said above.
        kwargs: As MMEngine's.
    """

    def __init__(self, *args: Any, backend_args: dict | None = None, **kwargs: Any) -> None:
        super().__init__(*args, backend_args=backend_args or dict(backend="atomic"), **kwargs)
        self._skipped = 0  # samples that this epoch's earlier part has seen, of all ranks
        self._deals_by_the_run = False

    def before_train(self, runner: Runner) -> None:
        # A checkpoint that is resumed from says which files this hook may remove. It is taken at
        # its word only for names that this hook makes, in its folder.
        known = runner.message_hub.runtime_info
        ids = known.get("keep_ckpt_ids", [])
        if not (isinstance(ids, list) and all(type(number) is int for number in ids)):
            known["keep_ckpt_ids"] = []
        super().before_train(runner)
        if runner.iter == 0:
            self._look_for_earlier(runner)
        if self.save_best is not None and len(self.key_indicators) == 1:
            self.best_ckpt_path = self._own(self.best_ckpt_path)
        elif self.save_best is not None:
            paths = self.best_ckpt_path_dict.items()
            self.best_ckpt_path_dict = {key: self._own(path) for key, path in paths}
        if is_main_process():
            for left in Path(self.out_dir).glob(".*.pth.*"):  # of a process that was killed
                left.unlink()
        self._skipped = runner.message_hub.get_info(SAMPLES_DONE, 0)
        runner.message_hub.update_info(SAMPLES_DONE, 0)
        if self._skipped:
            runner.train_dataloader.sampler.start = self._skipped // get_world_size()
        if self._deals_by_the_run:  # whose seed may have come from what is resumed
            runner.train_dataloader.sampler.seed = runner.seed
        stop_signals.noting = stop_signals.handling

    def _look_for_earlier(self, runner: Runner) -> None:
        interrupted = Path(self.out_dir, INTERRUPTED)
        if interrupted.exists():
            raise RuntimeError(
                f"{interrupted} is of a training that was interrupted, and this one would take its "
                "place: go on with that by --resume, give another --work-dir, or remove the file "
                "to train anew"
            )
        earlier = sorted(p.name for n in ("epoch_*", "iter_*") for p in Path(self.out_dir).glob(n))
        if earlier:
            runner.logger.warning(
                f"{self.out_dir} holds {', '.join(earlier[:3])}{' …' if len(earlier) > 3 else ''} "
                "of an earlier training, which this one replaces one by one; --resume goes on "
                "with it"
            )

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        # The run's seed gives way to the checkpoint's after this. A test has a loop's config alone.
        loader = getattr(runner._train_loop, "dataloader", None)
        seed = getattr(getattr(loader, "sampler", None), "seed", None)
        self._deals_by_the_run = seed is not None and seed == runner.seed
        # Resumed with weights that do not fit, a training would begin anew in part, or end with
        # what the optimizer says of its groups. Sharded weights are loaded by other means.
        if not runner._resume or isinstance(runner, FlexibleRunner):
            return
        found = checkpoint.get("state_dict", checkpoint)
        for name, tensor in get_state_dict(runner.model).items():
            if name not in found or found[name].shape != tensor.shape:
                shape = tuple(found[name].shape) if name in found else "not there"
                raise ValueError(
                    f"a training of another network cannot be resumed: {name} is {shape} in the "
                    f"checkpoint, but {tuple(tensor.shape)} in this config"
                )

    def _own(self, path: Any) -> str | None:
        """The best checkpoint of that name here, wherever the work dir was when it was written."""
        name = Path(path).name if isinstance(path, str) else ""
        if not name.startswith("best_"):
            return None
        return self.file_backend.join_path(self.out_dir, name)

    def after_train_iter(
        self,
        runner: Runner,
        batch_idx: int,
        data_batch: dict | None = None,
        outputs: dict | None = None,
    ) -> None:
        # Whoever resumes from a checkpoint in mid-epoch has to know where that was.
        runner.message_hub.update_info(SAMPLES_DONE, self._samples_done(runner, batch_idx + 1) or 0)
        last = self.last_ckpt
        super().after_train_iter(runner, batch_idx, data_batch, outputs)
        runner.message_hub.update_info(SAMPLES_DONE, 0)
        # No checkpoint holds gradients that wait for a step.
        if (number := self._signal()) and optimizer_has_stepped(runner):
            if self.last_ckpt == last:
                self._save_interrupted(runner, self._samples_done(runner, batch_idx + 1))
            raise SystemExit(128 + number)

    def _signal(self) -> int:
        """The signal that some rank has received, or 0.

        Ranks get it at different times and have to agree on one. This waits for the device, as
        MMEngine's RuntimeInfoHook, which reads the losses, already has.
        """
        number = torch.tensor(stop_signals.received or 0)
        if stop_signals.handling:
            all_reduce(number, "max")
        return int(number)

    def _samples_done(self, runner: Runner, batches: int) -> int | None:
        """Samples of this epoch that all ranks have seen; None if none can be left out again."""
        if not hasattr(runner.train_loop, "run_epoch"):
            return 0  # there is no epoch to begin in the middle of
        loader = runner.train_dataloader
        if not (isinstance(loader.sampler, SeededSampler) and loader.batch_size):
            return None
        return self._skipped + batches * loader.batch_size * get_world_size()

    def _save_interrupted(
        self, runner: Runner, samples: int | None, by_epoch: bool = False
    ) -> None:
        if samples is None:
            runner.logger.warning(
                "stopped in the middle of an epoch whose samples "
                f"{type(runner.train_dataloader.sampler).__name__} cannot deal from there: the "
                "last checkpoint is the one to resume from"
            )
            return
        check_weights(runner)
        runner.message_hub.update_info(SAMPLES_DONE, samples)
        runner.save_checkpoint(
            self.out_dir,
            INTERRUPTED,
            save_optimizer=self.save_optimizer,
            save_param_scheduler=self.save_param_scheduler,
            by_epoch=by_epoch,
            backend_args=self.backend_args,
        )
        path = self.file_backend.join_path(self.out_dir, INTERRUPTED)
        if is_main_process():
            write_text(Path(runner.work_dir) / "last_checkpoint", path)
        runner.logger.info(f"stopped; --resume goes on from {path}")

    def after_train_epoch(self, runner: Runner) -> None:
        self._skipped, last = 0, self.last_ckpt
        super().after_train_epoch(runner)
        # After the last epoch nothing but validation is left, which no resumed training makes up.
        if (number := self._signal()) and not self.is_last_train_epoch(runner):
            if self.last_ckpt == last:
                self._save_interrupted(runner, 0, by_epoch=True)
            raise SystemExit(128 + number)

    def after_train(self, runner: Runner) -> None:
        super().after_train(runner)
        stop_signals.noting = False

    def before_val(self, runner: Runner) -> None:
        stop_signals.noting = False  # nothing is learned here: a signal ends it at once

    def after_val(self, runner: Runner) -> None:
        stop_signals.noting = stop_signals.handling

    def _save_checkpoint_with_step(self, runner: Runner, step: int, meta: dict) -> None:
        check_weights(runner)
        with self._removing_afterwards():
            super()._save_checkpoint_with_step(runner, step, meta)
        if is_main_process():
            interrupted = Path(self.out_dir, INTERRUPTED)
            if interrupted.is_dir():  # of another strategy, DeepSpeed
                shutil.rmtree(interrupted)
            else:
                interrupted.unlink(missing_ok=True)

    def _save_best_checkpoint(self, runner: Runner, metrics: dict) -> None:
        if self.save_best is None:  # also where nothing is trained, and no folder known
            return
        check_weights(runner)
        with self._removing_afterwards():
            super()._save_best_checkpoint(runner, metrics)

    @contextmanager
    def _removing_afterwards(self) -> Iterator[None]:
        """Lets files that the parent removes stay until what it writes is there."""
        backend, outdated = self.file_backend, []
        self.file_backend = copy.copy(backend)
        self.file_backend.remove = self.file_backend.rmtree = outdated.append
        try:
            yield
        finally:
            self.file_backend = backend
        for path in outdated:
            if backend.isdir(path):  # of another strategy, DeepSpeed
                backend.rmtree(path)
            else:
                backend.remove(path)
