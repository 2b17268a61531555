# SPDX-License-Identifier: Apache-2.0
"""Labels on their way to a label file: finished pieces in a folder, which survive any end."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import logging
import os
from collections.abc import Iterable
from contextlib import suppress
from functools import lru_cache
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO, TextIO

import numpy as np
from mmengine.dist import all_gather_object
from mmengine.logging import print_log

from .coco_file import read_json, replacing, sync, write_json

NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
ROUNDING = ("device", "software")  # what other ranks may have, at the price of other bits


class LabelShards:
    """A folder of shards, each of which holds the labels of some batches of images.

    A shard appears under its name when it is whole and on the disk. Its first line is the SHA-256
    of the others, the second lists the samples in it, and the rest are ``index<TAB>label``: the
    place of an annotation in the input file and, as JSON, what labeling adds to it, or its
    ``problem``. Images that could not be used have shards of their own, for a resumed run to try
    them again. Names end with a hash of the run's fingerprint, so that what a lost process of
    another run may still be writing here is never taken for this run's.

    Args:
        folder: The folder; made by :meth:`open`.
        fingerprint: Names and hashes of all that labels depend on. Without it the shards of any
            run are seen.
    """

    def __init__(self, folder: str | Path, fingerprint: dict[str, str] | None = None) -> None:
        self.folder = Path(folder)
        self.fingerprint = fingerprint
        self._run = "*"
        if fingerprint is not None:
            self._run = hashlib.sha256(json.dumps(fingerprint).encode()).hexdigest()[:16]
        self._lock: TextIO | None = None

    def open(self, resume: bool) -> int:
        """Takes hold of the folder for this process, and throws out damaged shards.

        Images that could not be used are forgotten. One process may open a folder only once.

        Args:
            resume: Whether to go on with the shards of an earlier run, if there are any.

        Returns:
            Number of damaged shards that were thrown out.

        Raises:
            RuntimeError: Another process holds the folder; or there are shards, and they are not
                to be resumed or were made with another fingerprint.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        sync(self.folder.parent)
        self._lock = open(self.folder / "lock", "w")  # noqa: SIM115  held until the process ends
        try:
            # Unlike flock's, this lock is not inherited by the data loader's workers, who may
            # outlive a killed parent for seconds.
            try:
                fcntl.lockf(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                if error.errno not in NO_LOCKS:
                    raise
                print_log(
                    f"the file system of {self.folder} has no locks ({error.strerror}): see to it "
                    "that no second process labels to the same file",
                    logger="current",
                    level=logging.WARNING,
                )
            if not os.path.samestat(os.fstat(self._lock.fileno()), os.stat(self._lock.name)):
                raise BlockingIOError("the folder has just been removed")
            return self._take_over(resume)
        except (BlockingIOError, PermissionError) as error:
            self.release()
            raise RuntimeError(
                f"another process is writing labels to {self.folder}; wait for it, or choose "
                "another output file"
            ) from error
        except BaseException:
            self.release()
            raise

    def _take_over(self, resume: bool) -> int:
        stored, fingerprint = self.folder / "fingerprint.json", self.fingerprint or {}
        shards = list(self.folder.glob("*.shard"))
        if shards and not resume:
            raise RuntimeError(
                f"{self.folder} holds {len(shards)} shards of an earlier run that did not end, "
                "or not without failures; go on with it by --resume, or remove the folder to start "
                "again"
            )
        if shards:
            found = read_json(stored) if stored.exists() else {}
            differs = [k for k in {**found, **fingerprint} if found.get(k) != fingerprint.get(k)]
            if differs:
                raise RuntimeError(
                    f"{self.folder} was written with other {', '.join(differs)}; labels of both "
                    "would be mixed. Use what that run used, or remove the folder to start again"
                )
        for pattern in (".*", "*.failed"):  # what a killed process was writing; what is tried again
            for left in self.folder.glob(pattern):
                left.unlink()
        write_json(stored, fingerprint, indent=1)
        damaged = [shard for shard in shards if not _is_whole(shard)]
        for shard in damaged:
            shard.unlink()
        return len(damaged)

    def shards(self) -> list[Path]:
        """The files of finished images."""
        return sorted(self.folder.glob(f"*-{self._run}.shard"))

    def failures(self) -> list[Path]:
        """The files of images that could not be used."""
        return sorted(self.folder.glob(f"*-{self._run}.failed"))

    def write(
        self,
        samples: list[int],
        records: Iterable[tuple[int, dict[str, Any]]],
        failed: bool = False,
    ) -> None:
        """Writes a shard; when this returns, it is on the disk.

        Args:
            samples: Indices of the samples of the data set in it, not empty.
            records: Index of an annotation, and its label.
            failed: Whether these are images that could not be used.

        Raises:
            FileNotFoundError: The folder has been removed.
            OSError: The disk is full, or else not to be written to.
        """
        lines = [f"{index}\t{json.dumps(label)}\n" for index, label in records]
        content = "".join([json.dumps(samples), "\n", *lines]).encode()
        content = _sha256(BytesIO(content)).encode() + b"\n" + content
        try:
            # With the process in its name it does not replace one of other samples, should a
            # rank of a killed job still be at work.
            name = f"{min(samples):010d}-{os.getpid()}-{self._run}"
            name += ".failed" if failed else ".shard"
            if not self.folder.is_dir():
                raise FileNotFoundError(errno.ENOENT, "the folder has been removed", self.folder)
            with replacing(self.folder / name) as temporary:
                Path(temporary).write_bytes(content)
        except OSError as error:
            raise self.interrupted(error) from error

    def interrupted(self, error: OSError) -> OSError:
        """The same error, with what to do about it."""
        first = "make room" if error.errno in NO_ROOM else "mend that"
        where = f" ({error.filename})" if error.filename else ""
        return OSError(
            error.errno,
            f"{error.strerror or error}{where}: labels cannot be written. What is finished stays "
            f"in {self.folder}; {first}, then run the same command with --resume",
        )

    def finished_samples(self) -> set[int]:
        """Indices of the samples that are done."""
        return _samples(self.shards())

    def failed_samples(self) -> set[int]:
        """Indices of the samples that could not be used; some may be done since an earlier run."""
        return _samples(self.failures())

    def labels(self, length: int) -> Labels:
        """Finds the labels of all annotations.

        Args:
            length: Number of annotations in the input file.
        """
        return Labels(self.failures() + self.shards(), length)

    def release(self) -> None:
        """Lets another process take hold of the folder."""
        if self._lock:
            self._lock.close()

    def remove(self) -> None:
        """Removes the folder; killed on the way, it is one that can be resumed."""
        for shard in self.shards():
            shard.unlink()
        (self.folder / "fingerprint.json").unlink()
        (self.folder / "lock").unlink()
        self.release()
        with suppress(OSError):  # something of another run is in it
            self.folder.rmdir()


class Labels:
    """The labels in shards by the index of their annotation; only their places are in memory.

    Args:
        shards: The files.
        length: Number of annotations.
    """

    def __init__(self, shards: list[Path], length: int) -> None:
        # A process may not hold all of them open.
        self._open = lru_cache(maxsize=256)(lambda i: open(shards[i], "rb"))  # noqa: SIM115
        self._shard = np.full(length, -1, dtype=np.int32)
        self._offset = np.zeros(length, dtype=np.int64)
        for i, shard in enumerate(shards):
            with open(shard, "rb") as file:
                offset = len(file.readline()) + len(file.readline())
                for line in file:
                    index = int(line[: line.index(b"\t")])
                    self._shard[index], self._offset[index] = i, offset
                    offset += len(line)

    def get(self, index: int) -> dict[str, Any] | None:
        """What labeling made of an annotation; None if it did not meet it."""
        shard = self._shard[index]
        if shard < 0:
            return None
        file = self._open(shard)
        file.seek(self._offset[index])
        line = file.readline()
        return json.loads(line[line.index(b"\t") :])


def _sha256(file: BinaryIO) -> str:
    """Hash of the rest of a file."""
    digest = hashlib.sha256()
    while chunk := file.read(1 << 20):
        digest.update(chunk)
    return digest.hexdigest()


def file_sha256(path: str | Path) -> str:
    """Hash of a file, in hexadecimal digits.

    Raises:
        FileNotFoundError: There is none.
    """
    try:
        with open(path, "rb") as file:
            return _sha256(file)
    except FileNotFoundError:
        raise FileNotFoundError(f"{path} does not exist") from None


def _samples(shards: list[Path]) -> set[int]:
    samples: set[int] = set()
    for shard in shards:
        with open(shard, "rb") as file:
            file.readline()
            samples.update(json.loads(file.readline()))
    return samples


def _is_whole(shard: Path) -> bool:
    with open(shard, "rb") as file:
        expected = file.readline().rstrip(b"\n")
        return _sha256(file).encode() == expected


def common_fingerprint(fingerprint: dict[str, str]) -> dict[str, str]:
    """The main rank's fingerprint, by which shards of all ranks are named.

    Each rank makes its own, and machines may differ: in the model of GPU, or in where a folder of
    images lies by its real name.

    Raises:
        RuntimeError: Ranks label other boxes, or with other weights or settings.
    """
    everyone = all_gather_object(fingerprint)
    other = [k for k in fingerprint if any(each.get(k) != fingerprint[k] for each in everyone)]
    refused = [key for key in other if key not in (*ROUNDING, "images")]
    if refused:
        raise RuntimeError(
            f"the processes of this job have other {', '.join(refused)}, and their labels do not "
            "belong together: give all machines the same files"
        )
    if rounding := [key for key in other if key in ROUNDING]:
        print_log(
            f"the processes of this job have other {', '.join(rounding)}: the last bits of a mask "
            "depend on which of them makes it",
            logger="current",
            level=logging.WARNING,
        )
    return everyone[0]
