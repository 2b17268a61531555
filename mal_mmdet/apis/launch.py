# SPDX-License-Identifier: Apache-2.0
"""What the command-line tools share: arguments, configs and launchers."""

from __future__ import annotations

import argparse
import atexit
import difflib
import gc
import inspect
import logging
import os
import re
import subprocess
import sys
import time
import traceback
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from mmdet.registry import HOOKS, MODELS, OPTIM_WRAPPERS, TRANSFORMS
from mmengine._strategy import FSDPStrategy
from mmengine.config import Config, ConfigDict, DictAction
from mmengine.device import get_device
from mmengine.hooks import CheckpointHook
from mmengine.hub import get_config
from mmengine.logging import print_log
from mmengine.model import is_model_wrapper
from mmengine.optim import AmpOptimWrapper
from mmengine.registry import MODEL_WRAPPERS, STRATEGIES, Registry
from mmengine.runner import Runner, load_checkpoint
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from mal_mmdet.datasets.transforms import ExpandBBox
from mal_mmdet.engine import INTERRUPTED
from mal_mmdet.evaluation import MaskIoUMetric
from mal_mmdet.models import MaskAutoLabeler

ROOT = Path(__file__).resolve().parents[2]
CONFIG_ENDINGS = (".py", ".yml", ".yaml", ".json")  # that MMEngine reads
# Not best_*.pth, which have no state of the optimizer.
RESUMABLE = re.compile(rf"(epoch|iter)_\d+\.pth|{re.escape(INTERRUPTED)}")


@contextmanager
def readable_errors() -> Iterator[None]:
    """Ends a tool with the message alone of what this package, or the tool, refuses in words.

    Errors that libraries raise keep their traceback, as do all if ``MAL_MMDET_TRACEBACK`` is set in
    the environment.
    """
    try:
        yield
    except (ValueError, OSError, RuntimeError, FloatingPointError) as error:
        last = traceback.extract_tb(error.__traceback__)[-1]
        raised = Path(last.filename).resolve()
        ours = any(raised.is_relative_to(ROOT / name) for name in ("mal_mmdet", "tools"))
        # Compiled code, such as PyTorch's, has no frames: its errors seem to be the caller's.
        if not (ours and last.line.startswith("raise ")) or os.environ.get("MAL_MMDET_TRACEBACK"):
            raise
        raise SystemExit(f"{Path(sys.argv[0]).name}: {error}") from None


def add_trust_argument(parser: argparse.ArgumentParser) -> None:
    """Adds ``--trust-checkpoint``, for :func:`mal_mmdet.checkpoints.trusting_checkpoints`."""
    parser.add_argument(
        "--trust-checkpoint",
        action="store_true",
        help="load checkpoints that hold more than tensors and plain values, though such a file "
        "may run any code",
    )


def add_runner_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments that mmdet's tools have in common."""
    parser.add_argument("--work-dir", help="folder for logs and results")
    parser.add_argument(
        "--cfg-options",
        nargs="+",
        action=DictAction,
        help='settings that override the config\'s, as key=value; lists as key="[a,b]"',
    )
    parser.add_argument("--launcher", choices=["none", "pytorch", "slurm", "mpi"], default="none")
    parser.add_argument("--local_rank", "--local-rank", type=int, default=0)
    add_trust_argument(parser)


def set_local_rank(args: argparse.Namespace) -> None:
    """``torch.distributed.launch`` gives the rank as an argument; MMEngine reads the variable."""
    os.environ.setdefault("LOCAL_RANK", str(args.local_rank))


def read_config(config: str | Path) -> Config:
    """Reads a config file, or, named ``package::path``, one that came with a package.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file is of another kind.
    """
    if "::" in str(config):
        return get_config(config)
    if Path(config).suffix not in CONFIG_ENDINGS:
        raise ValueError(
            f"{config} is no config, whose name would end with {', '.join(CONFIG_ENDINGS)}; are "
            "config and checkpoint in the right order?"
        )
    if not Path(config).exists():
        raise FileNotFoundError(f"there is no config {config}")
    return Config.fromfile(config)


def load_config(args: argparse.Namespace, timeout: int | None = None) -> Config:
    """Reads a config and applies the arguments of :func:`add_runner_arguments`.

    Args:
        args: The parsed arguments, with a ``config``, see :func:`read_config`.
        timeout: See :func:`set_launcher`.
    """
    set_local_rank(args)
    cfg = read_config(args.config)
    if args.cfg_options:
        _warn_of_misspelt(args.cfg_options, cfg)
        cfg.merge_from_dict(args.cfg_options)
    if args.work_dir:
        cfg.work_dir = args.work_dir
    cfg.setdefault("work_dir", str(Path("work_dirs") / Path(args.config).stem))
    set_launcher(cfg, args.launcher, timeout)
    return cfg


def _warn_of_misspelt(options: dict, cfg: Config) -> None:
    known = {*cfg.keys(), *inspect.signature(Runner.__init__).parameters}
    for key in {option.split(".")[0] for option in options} - known:
        for near in difflib.get_close_matches(key, known, n=1, cutoff=0.8):
            print_log(
                f"--cfg-options sets {key}, which the config does not have; is {near} meant?",
                logger="current",
                level=logging.WARNING,
            )


def set_launcher(cfg: Config, launcher: str, timeout: int | None = None) -> None:
    """Lets a config run under a launcher, in place.

    ``pytorch`` and ``slurm`` also work on machines without GPU.

    Args:
        cfg: Any config.
        launcher: As MMEngine's.
        timeout: Seconds that ranks wait for each other; PyTorch's if not given.

    Raises:
        ValueError: The launcher is ``slurm``, and srun has not started this process, or does not
            tell where the first one runs; or ``mpi``, and Open MPI's mpirun has not.
    """
    if launcher == "slurm" and "SLURM_STEP_ID" not in os.environ:
        raise ValueError(
            "--launcher slurm was given, but SLURM_STEP_ID is not set: expected a process started "
            "by srun, as tools/slurm_*.sh do"
        )
    if launcher == "mpi":
        local_rank = os.environ.get("OMPI_COMM_WORLD_LOCAL_RANK")
        if local_rank is None:
            raise ValueError(
                "--launcher mpi was given, but OMPI_COMM_WORLD_LOCAL_RANK is not set: expected a "
                "process started by Open MPI's mpirun"
            )
        os.environ["LOCAL_RANK"] = local_rank  # by which MMEngine's runner wraps the model
    cfg.launcher = launcher
    if timeout:
        cfg.merge_from_dict({"env_cfg.dist_cfg.timeout": timeout})
    if launcher in ("pytorch", "slurm") and get_device() == "cpu":
        # MMEngine's own start asks for a GPU.
        if launcher == "slurm":
            _take_rank_from_slurm(cfg.get("env_cfg", {}).get("dist_cfg", {}).get("port"))
        if not torch.distributed.is_initialized():
            options = dict(timeout=timedelta(seconds=timeout)) if timeout else {}
            torch.distributed.init_process_group("gloo", **options)
            atexit.register(leave_group)
        # As MMEngine does, but without the number of a GPU.
        own = cfg.get("model_wrapper_cfg") or dict(
            broadcast_buffers=False, find_unused_parameters=cfg.get("find_unused_parameters", False)
        )
        wrapper = ConfigDict(type="MMDistributedDataParallel") | own
        if issubclass(class_of(wrapper, MODEL_WRAPPERS), DistributedDataParallel):
            wrapper.device_ids = None
        cfg.model_wrapper_cfg = wrapper


def _take_rank_from_slurm(port: int | None) -> None:
    """Says in PyTorch's variables what Slurm says in its own, as MMEngine does for GPUs."""
    names = dict(RANK="SLURM_PROCID", WORLD_SIZE="SLURM_NTASKS", LOCAL_RANK="SLURM_LOCALID")
    os.environ.update({name: os.environ[slurms] for name, slurms in names.items()})
    if port is not None:
        os.environ["MASTER_PORT"] = str(port)
    os.environ.setdefault("MASTER_PORT", "29500")  # PyTorch's own
    if "MASTER_ADDR" not in os.environ:
        command = ["scontrol", "show", "hostnames", os.environ["SLURM_NODELIST"]]
        try:
            found = subprocess.check_output(command, text=True)
        except (OSError, subprocess.CalledProcessError) as error:
            raise ValueError(
                f"`{' '.join(command)}` does not tell the first node of the job ({error}); set "
                "MASTER_ADDR to its name"
            ) from error
        os.environ["MASTER_ADDR"] = found.split()[0]


def leave_group() -> None:
    """Ends the process group and its threads, while the interpreter is still there.

    A thread of gloo may be the last owner of a collective's tensors. It needs the interpreter to
    free them, even after the collective is over, and aborts the process if it comes too late.
    """
    # Only the end of the last reference waits for the threads. The runner's model holds one: it is
    # part of reference cycles, and of the frames that Python keeps of an uncaught error.
    sys.last_type = sys.last_value = sys.last_traceback = None
    gc.collect()
    if torch.__version__ < (2, 9):
        time.sleep(1)  # there it waits for threads that wait for the interpreter: let them be done
    torch.distributed.destroy_process_group()


def class_of(part: ConfigDict, registry: Registry) -> Any:
    """What a part of a config builds: its ``type`` is a name, or in configs in Python the class."""
    return registry.get(part.type) if isinstance(part.type, str) else part.type


def expand_step(cfg: Config) -> ConfigDict:
    """The step of the test pipeline of a config of phase 1 that expands boxes.

    Raises:
        ValueError: There is none.
    """
    pipeline = cfg.test_dataloader.dataset.pipeline
    for step in pipeline:
        kind = class_of(step, TRANSFORMS)
        if isinstance(kind, type) and issubclass(kind, ExpandBBox):
            return step
    names = [getattr(step.type, "__name__", step.type) for step in pipeline]
    raise ValueError(
        f"test_dataloader.dataset.pipeline has the steps {', '.join(names)}; "
        "expected an ExpandBBox among them, as the configs in configs/mal/ have"
    )


def unwrapped(model: nn.Module) -> nn.Module:
    """A model without the wrapper that distributed runs put around it."""
    return model.module if is_model_wrapper(model) else model


def load_weights(model: nn.Module, checkpoint: str | Path | None) -> None:
    """Loads a checkpoint for testing; one of phase 1 has to fit to the last tensor.

    Args:
        model: Possibly in the wrapper of a distributed run.
        checkpoint: Without one the model is initialised as training would start.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The checkpoint is another network's.
    """
    model = unwrapped(model)
    if checkpoint is None:
        model.init_weights()
        return
    if "://" not in str(checkpoint) and not Path(checkpoint).exists():
        raise FileNotFoundError(f"there is no checkpoint {checkpoint}")
    strict = isinstance(model, MaskAutoLabeler)
    try:
        # Not by the runner, whose hooks, such as EMAHook, are not ready for it before its test.
        load_checkpoint(model, str(checkpoint), map_location="cpu", strict=strict)
    except RuntimeError as error:
        if not strict:
            raise
        lines = [line for line in str(error).splitlines() if line.strip()]
        if len(lines) > 4:
            lines[4:] = [f"and {len(lines) - 4} more"]
        text = "\n".join(line if len(line) < 300 else f"{line[:300]} …" for line in lines)
        raise ValueError(
            f"{checkpoint} is not a checkpoint of the config's network (model.network), but "
            f"perhaps of another config: {text}"
        ) from None


def use_safe_checkpoints(cfg: Config) -> None:
    """Lets any config write its checkpoints by :class:`SafeCheckpointHook`, in place."""
    cfg.setdefault("default_hooks", {})
    cfg.default_hooks.setdefault("checkpoint", dict(type="CheckpointHook", interval=1))
    hook = cfg.default_hooks.checkpoint
    if hook and class_of(hook, HOOKS) is CheckpointHook:
        hook.type = "SafeCheckpointHook"


def resume_latest(cfg: Config) -> None:
    """Lets a training go on with the latest whole checkpoint in its work dir, in place.

    Without one it starts as the config says, so that a job script can always ask for it.

    Raises:
        ValueError: There are checkpoints, but all are damaged.
    """
    checkpoint = latest_checkpoint(cfg.work_dir)
    if checkpoint is not None:
        cfg.resume, cfg.load_from = True, str(checkpoint)


def latest_checkpoint(work_dir: str | Path) -> Path | None:
    """The checkpoint that a training was last told to have written, or the latest whole one.

    Args:
        work_dir: Of the training; its file ``last_checkpoint`` may name another folder, and a
            folder that has been moved still has its checkpoints in it.

    Returns:
        None if there are no checkpoints.

    Raises:
        ValueError: All are damaged, or ``last_checkpoint`` names one and there is none.
    """
    pointer, folders = Path(work_dir, "last_checkpoint"), [Path(work_dir)]
    text = pointer.read_text(encoding="utf-8", errors="replace") if pointer.exists() else ""
    named = Path(text.strip()) if text.strip() else None
    if named and (named.exists() or (named.is_absolute() and named.parent.is_dir())):
        folders.insert(0, named.parent)
    found = {path for folder in folders for path in folder.glob("*")}
    # What is named there is one to resume from, whatever the config's filename_tmpl.
    name = named and named.name
    found = sorted(
        (path for path in found if path.name == name or RESUMABLE.fullmatch(path.name)),
        key=lambda path: (
            path == named,
            path.parent == folders[0],
            path.name == name,
            path.stat().st_mtime,
        ),
        reverse=True,
    )
    for path in found:
        problem = damage(path)
        if problem is None:
            return path
        print_log(
            f"{path} is damaged ({problem}); trying the checkpoint before it",
            logger="current",
            level=logging.WARNING,
        )
    if found:
        names = ", ".join(path.name for path in found)
        raise ValueError(
            f"all checkpoints in {found[0].parent} are damaged ({names}): remove them to train anew"
        )
    if named:
        raise ValueError(
            f"{pointer} names {named}, which is not there, nor another checkpoint: if it was "
            "moved, give it with --resume FILE; to train anew, remove last_checkpoint"
        )
    return None


def damage(checkpoint: Path) -> str | None:
    """What is wrong with a checkpoint, by the checksums in it; None if nothing is.

    Args:
        checkpoint: A file of ``torch.save``, or a folder with such files.
    """
    if checkpoint.is_dir():
        problems = [damage(path) for path in sorted(checkpoint.glob("*.pth"))]
        return next(filter(None, problems), None)
    try:
        with zipfile.ZipFile(checkpoint) as archive:
            broken = archive.testzip()
    # What a flipped bit in a header can look like: other compression, encryption, no text.
    except (OSError, EOFError, ValueError, RuntimeError, zipfile.BadZipFile, zlib.error) as error:
        return str(error)
    return broken and f"wrong checksum of {broken}"


def refuse_sharded_validation(cfg: Config) -> None:
    """Ends a training of phase 1 that shards its networks and would validate, before it begins.

    Ranks validate on boxes of their own, in as many forward passes as those take, while sharded
    networks need all ranks in every pass.

    Raises:
        ValueError: The config has a ``strategy`` that shards, and a ``val_cfg``.
    """
    strategy = cfg.get("strategy") or {}
    if not (strategy.get("type") and cfg.get("val_cfg")):
        return
    sharded = issubclass(class_of(strategy, STRATEGIES), FSDPStrategy)
    if sharded and class_of(cfg.model, MODELS) is MaskAutoLabeler:
        raise ValueError(
            f"the config shards its networks (strategy.type is {cfg.strategy.type}) and validates "
            "(val_cfg), but sharded networks cannot be validated in training: set val_cfg, "
            "val_dataloader and val_evaluator to None, and measure checkpoints by tools/test.py"
        )


def full_precision_without_gpu(cfg: Config) -> None:
    """Trains in float32 where there is no GPU, in place: MMEngine's AMP needs one."""
    if get_device() != "cpu" or class_of(cfg.optim_wrapper, OPTIM_WRAPPERS) is not AmpOptimWrapper:
        return
    print("no GPU found: training in float32 instead of mixed precision")
    cfg.optim_wrapper.type = "OptimWrapper"
    for key in ("dtype", "loss_scale"):
        cfg.optim_wrapper.pop(key, None)


def use_detections(cfg: Config, detections: str | Path) -> None:
    """Lets a config of phase 1 test on the boxes of a detector, in place.

    The metric becomes mask AP against the human masks that the config compares with.

    Args:
        cfg: Its ``test_evaluator`` is a :class:`MaskIoUMetric`; ``detection_metric`` names the
            metric of its data set.
        detections: COCO results file with scores.

    Raises:
        ValueError: The config has no human masks to compare with.
    """
    evaluator = cfg.test_evaluator
    if not isinstance(evaluator, dict) or "ann_file" not in evaluator:
        raise ValueError(
            f"mask AP needs human masks: test_evaluator.ann_file of the config, which has "
            f"test_evaluator={evaluator}"
        )
    cfg.test_dataloader.dataset.dataset.detections = str(detections)
    cfg.test_evaluator = dict(type=cfg.detection_metric, ann_file=evaluator.ann_file, metric="segm")


def use_boxes(cfg: Config, ann_file: str | Path, img_dir: str | Path) -> None:
    """Lets the test data set of a config of phase 1 read the boxes of a COCO file, in place."""
    cfg.test_dataloader.dataset.dataset.update(
        type="CocoBoxDataset",
        metainfo=None,  # all classes
        data_root="",
        ann_file=str(ann_file),
        data_prefix=dict(img=str(img_dir)),
    )


def use_windows(runner: Runner) -> None:
    """Lets a test that only measures MAL's masks paste none into a whole image.

    Hundreds of boxes in a large image would take gigabytes.

    Args:
        runner: Before its test. Its config, which it has written, stays as it is.
    """
    model = unwrapped(runner.model)
    measured = all(isinstance(metric, MaskIoUMetric) for metric in runner.test_evaluator.metrics)
    drawn = any(getattr(hook, "draw", False) for hook in runner.hooks)
    if isinstance(model, MaskAutoLabeler) and measured and not drawn:
        model.paste_masks = False


def use_one_crop(cfg: Config) -> None:
    """Lets the test pipeline of a config of phase 1 make the first of a box's crops alone."""
    expand = expand_step(cfg)
    if isinstance(expand.get("margin"), Sequence):
        expand.margin = expand.margin[0]
