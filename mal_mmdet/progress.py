# SPDX-License-Identifier: Apache-2.0
"""How far a long loop is: a bar on a terminal, a plain line now and then in a log file or pipe."""

from __future__ import annotations

import atexit
import logging
import os
import sys
import time
from collections.abc import Iterable, Iterator
from datetime import timedelta
from typing import TypeVar

from mmengine.dist import is_main_process
from mmengine.logging import MMLogger
from rich import get_console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn
from rich.text import Text

T = TypeVar("T")
LINE_SECONDS = 30.0  # from one plain line to the next
BAR_SECONDS = 0.25  # from one state of the bar to the next
PERIODS = dict(s=1, min=60, h=3600)


def rate_text(count: int, seconds: float, unit: str) -> str:
    """Mean rate, by the shortest of second, minute and hour in which there is one at all.

    Args:
        count: Number that was done in ``seconds``, which are more than 0.
        unit: What is counted, in the plural.
    """
    rates = {name: count * period / seconds for name, period in PERIODS.items()}
    name = next((name for name, rate in rates.items() if rate >= 1), "h")
    return f"{rates[name]:,.1f} {unit}/{name}"


def time_left(done: int, total: int | None, first: int, seconds: float) -> str:
    """Hours, minutes and seconds to go at the mean rate so far; nothing where that is unknown.

    Args:
        done, total: How many are done, of how many.
        first: How many of them were done at the start.
        seconds: Time since then.
    """
    if total is None or done <= first:
        return ""
    left = max(total - done, 0) * seconds / (done - first)
    return f"{timedelta(seconds=round(left))} left"


def time_taken(seconds: float) -> str:
    """Hours, minutes and seconds."""
    return f"{timedelta(seconds=round(seconds))} in all"


class _RateAndTime(ProgressColumn):
    def render(self, task: Task) -> Text:
        done, seconds, first = int(task.completed), task.elapsed or 0.0, task.fields["first"]
        if not seconds or done <= first:
            return Text("")
        rate = rate_text(done - first, seconds, task.fields["unit"])
        if task.finished:
            return Text(f"{rate}, {time_taken(task.finished_time)}")
        left = time_left(done, task.total, first, seconds)
        return Text(", ".join(filter(None, (rate, left))))


class Meter:
    """Shows how far something is, from its making to :meth:`stop`; on the main rank alone.

    On a terminal it is a bar of rich. What is printed or logged meanwhile goes by above the bar,
    and a meter inside another one stands below it. Elsewhere it is a plain line at least
    ``LINE_SECONDS`` after the one before, and one at the end.

    Args:
        description: What is done.
        unit: What is counted, in the plural.
        total: How many there are, if that is known.
        done: How many are done already.
        bar_only: Whether to show nothing where there is no terminal, as others log there.
        disable: Whether to show nothing at all.
    """

    def __init__(
        self,
        description: str,
        unit: str,
        total: int | None = None,
        done: int = 0,
        bar_only: bool = False,
        disable: bool = False,
    ) -> None:
        self.description, self.unit, self.total = description, unit, total
        self.first = self.done = done
        self._start = self._shown = time.monotonic()
        shown = is_main_process() and not disable
        self._bar = self._new_bar() if shown and get_console().is_interactive else None
        self._lines = shown and not self._bar and not bar_only
        atexit.register(self.stop)  # or an error would leave the terminal without a cursor

    def _new_bar(self) -> Progress:
        self._streams = sys.stdout, sys.stderr
        bar = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            _RateAndTime(),
            console=get_console(),
            refresh_per_second=4,
        )
        fields = dict(unit=self.unit, first=self.first)
        self._task = bar.add_task(self.description, total=self.total, completed=self.done, **fields)
        bar.start()
        # What the bar does to sys.stdout, loggers have to be told: they hold the old one.
        self._handlers = [
            handler
            for handler in MMLogger.get_current_instance().handlers
            if isinstance(handler, logging.StreamHandler) and handler.stream is self._streams[0]
        ]
        for handler in self._handlers:
            handler.setStream(sys.stdout)
        _with_bars.append(self)
        return bar

    def advance(self, count: int = 1) -> None:
        """Counts what has been done, up to the total."""
        self.done += count
        if self.total is not None:
            self.done = min(self.done, self.total)
        now = time.monotonic()
        if self._bar and now - self._shown >= BAR_SECONDS:
            self._shown = now
            self._bar.update(self._task, completed=self.done)
        elif self._lines and now - self._shown >= LINE_SECONDS and self.done != self.total:
            self._shown = now
            self._print(time_left(self.done, self.total, self.first, now - self._start))

    def stop(self) -> None:
        """Shows the last state, and nothing more."""
        atexit.unregister(self.stop)
        if self._bar:
            self._bar.update(self._task, completed=self.done)
            for handler in self._handlers:
                handler.setStream(self._streams[0])
            self._bar.stop()
            _with_bars.remove(self)
        elif self._lines and self.done > self.first:
            self._print(time_taken(time.monotonic() - self._start))
        self._bar, self._lines = None, False

    def _print(self, end: str) -> None:
        seconds = max(time.monotonic() - self._start, 1e-9)
        count = f"{self.description}: {self.done}"
        if self.total and self.done != self.total:
            count += f" of {self.total} {self.unit} ({self.done / self.total:.0%})"
        else:
            count += f" {self.unit}"
        parts = count, rate_text(self.done - self.first, seconds, self.unit), end
        print(", ".join(filter(None, parts)), flush=True)


_with_bars: list[Meter] = []


def _leave_bars_to_parent() -> None:
    """In a forked process, such as a data loader's worker, lets output go its old way.

    The bar's locks may be held for ever there, by a thread that only the parent has.
    """
    for meter in reversed(_with_bars):
        sys.stdout, sys.stderr = meter._streams
        for handler in meter._handlers:
            handler.stream = sys.stdout
        meter._bar = None
    _with_bars.clear()


os.register_at_fork(after_in_child=_leave_bars_to_parent)


def track(
    items: Iterable[T],
    description: str,
    unit: str,
    total: int | None = None,
    disable: bool = False,
    bar_only: bool = False,
) -> Iterator[T]:
    """Iterates with a :class:`Meter`.

    Args:
        items: What is iterated.
        total: How many there are; without it their ``len``, if they have one.
        description, unit, disable, bar_only: As of :class:`Meter`.

    Yields:
        The items.
    """
    if total is None and hasattr(items, "__len__"):
        total = len(items)
    meter = Meter(description, unit, total, disable=disable, bar_only=bar_only)
    try:
        for item in items:
            yield item
            meter.advance()
    finally:
        meter.stop()
