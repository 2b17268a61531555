# SPDX-License-Identifier: Apache-2.0
"""SIGTERM and SIGINT, noted until the work at hand is safe on the disk.

A scheduler that wants its machine back sends SIGTERM and, half a minute later, SIGKILL. Tools note
the first signal; a hook sees it after the iteration, saves, and ends the process with 128 + the
number of the signal (143, 130): what shells, Kubernetes and Slurm show for a process that died of
it. Dying of it indeed would skip the end of the process group, and the first process of a
container cannot.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGTERM, signal.SIGINT)
# A scheduler may reach a process twice, itself and through the launcher. That is one request.
SAME_REQUEST_SECONDS = 2.0


class StopSignals:
    """What this process knows of signals to stop.

    Attributes:
        received: The first signal that was noted, or None.
        noting: Whether signals are noted, by whoever looks at ``received`` soon. If not, the
            first one ends the process, by :class:`SystemExit`.
        handling: Whether :meth:`handled` is at work at all.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self.noting = False
        self.handling = False
        self._since = 0.0

    @contextmanager
    def handled(self) -> Iterator[None]:
        """Takes the place of Python's own handlers, in the main thread of a tool."""
        before = {number: signal.signal(number, self._handle) for number in SIGNALS}
        self.received, self.noting, self.handling = None, False, True
        try:
            yield
        finally:
            self.noting = self.handling = False
            for number, handler in before.items():
                signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        name = signal.Signals(number).name
        if self.received is None:
            self.received, self._since = number, time.monotonic()
            if not self.noting:
                raise SystemExit(128 + number)
            text = f"{name}: saving after this iteration; a second signal ends at once\n"
            os.write(2, text.encode())  # print may be what was interrupted
        elif time.monotonic() - self._since > SAME_REQUEST_SECONDS:
            os._exit(128 + number)


def _leave_signals_to_the_parent() -> None:
    # Schedulers and launchers signal every process of a job. A data-loader worker that dies of it
    # takes its parent with it, in the middle of a step.
    if stop_signals.handling:
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        threading.Thread(target=_obey, args=(os.getppid(),), daemon=True).start()


def _obey(parent: int) -> None:
    while signal.sigwaitinfo(SIGNALS).si_pid != parent:
        pass
    os._exit(0)


stop_signals = StopSignals()
"""Those of this process."""

os.register_at_fork(after_in_child=_leave_signals_to_the_parent)
