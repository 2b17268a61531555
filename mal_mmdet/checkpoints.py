# SPDX-License-Identifier: Apache-2.0
"""Checkpoints are read without running code that they may carry.

A checkpoint is a pickle, and a pickle is a program. Importing this module puts a guard before all
of MMEngine's ways to load one: what needs more than tensors, plain containers and
``SAFE_GLOBALS`` is refused, unless it is read within :func:`trusting_checkpoints`.
"""

from __future__ import annotations

import argparse
import errno
import functools
import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from pickle import UnpicklingError
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from mmengine.logging import HistoryBuffer
from mmengine.runner.checkpoint import CheckpointLoader, get_torch_safe_globals

_trusted: ContextVar[bool] = ContextVar("trusted", default=False)
_torch_load = torch.load
NO_GPU = "Attempting to deserialize object on"  # a sound file, read in the wrong place
STATISTICS = ("min", "max", "mean", "current")


@contextmanager
def trusting_checkpoints(trusted: bool = True) -> Iterator[None]:
    """Within it, checkpoints may run any code, if ``trusted``."""
    token = _trusted.set(trusted)
    try:
        yield
    finally:
        _trusted.reset(token)


def history_method(owner: Any, name: str) -> Callable:
    """Takes the place of ``getattr``, by which a :class:`HistoryBuffer` names its statistics.

    With ``getattr`` itself, which MMEngine allows, a checkpoint reaches ``os.system``.

    Raises:
        UnpicklingError: Something else is asked for.
    """
    if owner is not HistoryBuffer or name not in STATISTICS:
        raise UnpicklingError(f"getattr of {name!r:.40}")
    return getattr(HistoryBuffer, name)


# What the checkpoints of MMEngine's runner hold beside tensors, their logs above all, and the
# arguments that MAE and others save. NumPy has moved two functions; both places are known.
SAFE_GLOBALS = [
    *(entry for entry in get_torch_safe_globals() if entry is not getattr),
    (history_method, "builtins.getattr"),
    argparse.Namespace,
    *{type(np.dtype(code)) for code in "?bBhHiIlLqQefd"},
    *(
        (value.__reduce__()[0], f"numpy.{core}.multiarray.{name}")
        for value, name in ((np.empty(0), "_reconstruct"), (np.float64(), "scalar"))
        for core in ("core", "_core")
    ),
]


def load_safely(file: Any, map_location: Any = None, **kwargs: Any) -> Any:
    """Reads a checkpoint as :func:`torch.load` does, but runs none of its code.

    Args:
        file: Path, or an open file.
        map_location: As of :func:`torch.load`.
        kwargs: Are not looked at: no caller may ask for less safety.

    Raises:
        ValueError: It needs code to run, or is no checkpoint, or not a whole one.
    """
    allowed = torch.serialization.get_safe_globals()
    torch.serialization.clear_safe_globals()  # of MMEngine's getattr
    rest = [entry for entry in allowed if entry is not getattr]
    try:
        with torch.serialization.safe_globals(rest + SAFE_GLOBALS):
            try:
                return _torch_load(file, map_location=map_location, weights_only=True)
            except UnpicklingError as error:
                raise ValueError(
                    f"{file} is no checkpoint of tensors and plain values alone: it wants "
                    f"{_wanted(file, error)}. Code in a checkpoint can do anything on this "
                    "machine; if you trust whoever made the file, allow it by --trust-checkpoint, "
                    "or in Python by mal_mmdet.checkpoints.trusting_checkpoints"
                ) from error
            except OSError as error:  # "Invalid argument": a file that ends too early
                if error.errno not in (None, errno.EINVAL):
                    raise
                raise ValueError(_not_whole(file, error)) from error
            except Exception as error:
                # Of PyTorch's reader, which takes a file on trust: whatever a wrong byte led to.
                if isinstance(error, MemoryError) or NO_GPU in str(error):
                    raise
                raise ValueError(_not_whole(file, error)) from error
    finally:
        torch.serialization.clear_safe_globals()
        torch.serialization.add_safe_globals(allowed)


def _not_whole(file: Any, error: Exception) -> str:
    reason = str(error).partition("\n")[0] or "it ends too early"
    return (
        f"{file} is no whole checkpoint ({type(error).__name__}: {reason:.200}). If it was "
        "downloaded, or copied, delete it and fetch it again"
    )


def _wanted(file: Any, error: UnpicklingError) -> str:
    """What a file would import and is not allowed to, or else what torch could not read."""
    if isinstance(file, io.IOBase):
        file.seek(0)
    with suppress(Exception):  # an old or odd file
        if names := torch.serialization.get_unsafe_globals_in_checkpoint(file):
            return ", ".join(sorted(names))
    return str(error).rpartition("WeightsUnpickler error:")[2].strip().partition("\n")[0]


def guard(load: Callable) -> Callable:
    """A loader of MMEngine's, wherever it takes its file from, with :func:`load_safely` in it.

    It gives dictionaries alone, or raises a ValueError, and no ``config`` in their ``meta``: to
    resume, MMEngine runs such a text, to compare numbers of GPUs. Its own checkpoints have none.
    """

    @functools.wraps(load)  # MMEngine logs the name
    def guarded(filename: str, map_location: Any = None) -> Any:
        if _trusted.get():
            return load(filename, map_location)
        with patch.object(torch, "load", load_safely):
            content = load(filename, map_location)
        meta = content.get("meta", {}) if isinstance(content, dict) else None
        if not isinstance(meta, dict):
            raise ValueError(
                f"{filename} is no checkpoint: it, and its 'meta' if it has one, must be "
                f"dictionaries, but it holds a {type(content).__name__}"
                + (f" with a {type(meta).__name__} as 'meta'" if isinstance(content, dict) else "")
            )
        meta.pop("config", None)
        return content

    return guarded


for _prefix, _load in list(CheckpointLoader._schemes.items()):
    CheckpointLoader.register_scheme(_prefix, guard(_load), force=True)
