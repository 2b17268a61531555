# SPDX-License-Identifier: Apache-2.0
"""Annotation files of any size, one entry at a time."""

from __future__ import annotations

import json
from codecs import BOM_UTF8
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, TextIO, TypeVar

from mal_mmdet.progress import Meter

T = TypeVar("T")
WINDOW = 1 << 20  # bytes read at once; grows only for an entry that is larger
MAX_DEPTH = 100  # of lists and objects in each other; COCO has five


def check_depth(value: T, text: str) -> T:
    """A value as it is, if nothing that goes through it can run out of Python's stack.

    Args:
        value: What was decoded.
        text: What it was decoded from; few characters or brackets spare a closer look.

    Raises:
        ValueError: Lists and objects are nested more than ``MAX_DEPTH`` deep.
    """
    short = len(text) <= 2 * MAX_DEPTH or text.count("[") + text.count("{") <= MAX_DEPTH
    level: list = [] if short else [value]
    for _ in range(MAX_DEPTH + 1):
        if not level:
            return value
        level = [
            child
            for parent in level
            for child in (parent.values() if isinstance(parent, dict) else parent)
            if isinstance(child, (dict, list))
        ]
    raise ValueError(f"lists and objects are nested more than {MAX_DEPTH} deep")


class JSONList:
    """A list in a JSON file that stays in the file: each iteration reads it once more.

    Args:
        path: The file, UTF-8.
        offset: Position of the list's ``[``, in bytes.
        length: Number of its entries.
    """

    def __init__(self, path: str | Path, offset: int, length: int) -> None:
        self.path = path
        self.offset = offset
        self.length = length

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[Any]:
        with open(self.path, "rb") as file:
            yield from _Reader(file, self.offset).entries()


def stream_json(path: str | Path, key: str | None = None) -> Any:
    """Reads JSON as :func:`json.load` does, but leaves one long list in the file.

    Args:
        path: The file, UTF-8.
        key: Member of the outer object whose list is left; without it the outer value itself.

    Returns:
        The value, with a :class:`JSONList` in place of that list.

    Raises:
        FileNotFoundError: No such file.
        ValueError: Not JSON.
    """
    with open(path, "rb") as file:
        marked = file.read(len(BOM_UTF8)) == BOM_UTF8  # as some editors do
        reader = _Reader(file, len(BOM_UTF8) if marked else 0)
        opening = reader.peek()
        if key is None and opening == "[":
            value = _skim(path, reader)
        elif key is not None and opening == "{":
            value = {}
            for name in reader.members():
                left = name == key and reader.peek() == "["
                value[name] = _skim(path, reader) if left else reader.value()
        else:
            value = reader.value()
        if reader.peek():
            raise ValueError(f"more text after the end, at byte {reader.offset}")
    return value


def _skim(path: str | Path, reader: _Reader) -> JSONList:
    offset = reader.offset
    meter = Meter(f"opening {Path(path).name}", "entries", bar_only=True)
    try:
        for _ in reader.entries():
            meter.advance()
    finally:
        meter.stop()
    return JSONList(path, offset, meter.done)


class ListWriter:
    """Writes a list entry by entry, one to a line, so that it never has to be in memory.

    Args:
        file: A text file.
    """

    def __init__(self, file: TextIO) -> None:
        self._file = file
        self._before = "[\n"

    def add(self, entry: Any) -> None:
        """Writes an entry."""
        self._file.write(self._before + json.dumps(entry))
        self._before = ",\n"

    def close(self) -> None:
        """Ends the list, not the file."""
        self._file.write("[]" if self._before == "[\n" else "\n]")


def write_around(
    file: TextIO, content: dict[str, Any], key: str, write: Callable[[ListWriter], T]
) -> T:
    """Writes an object as :func:`stream_json` reads it: all at once, but for one long list.

    Args:
        file: A text file.
        content: The object.
        key: Its member whose list is written by the caller.
        write: Is given the list's writer, and adds its entries.

    Returns:
        What ``write`` returns.
    """
    for i, (name, value) in enumerate(content.items()):
        file.write((", " if i else "{") + json.dumps(name) + ": ")
        if name == key:
            writer = ListWriter(file)
            result = write(writer)
            writer.close()
        else:
            file.write(json.dumps(value))
    file.write("}")
    return result


class _Reader:
    """Decodes value after value from a window over a file.

    The window holds bytes as Latin-1: one character a byte, so that offsets are right, and all
    that gives JSON its structure is ASCII. Only entries with other characters are decoded again.
    """

    def __init__(self, file: BinaryIO, offset: int = 0) -> None:
        file.seek(offset)
        self._file = file
        self._decode = json.JSONDecoder().raw_decode
        self._start = offset  # of the window, in the file
        self._window = ""
        self._pos = 0
        self._ended = False

    @property
    def offset(self) -> int:
        """Position in the file, in bytes."""
        return self._start + self._pos

    def _grow(self) -> None:
        more = self._file.read(max(WINDOW, len(self._window) - self._pos))
        self._start += self._pos
        self._window = self._window[self._pos :] + more.decode("latin-1")
        self._pos = 0
        self._ended = not more

    def peek(self) -> str:
        """The next character that is not white space; nothing at the end of the file."""
        while True:
            while self._pos < len(self._window):
                if self._window[self._pos] not in " \t\r\n":
                    return self._window[self._pos]
                self._pos += 1
            if self._ended:
                return ""
            self._grow()

    def _take(self, expected: str) -> str:
        char = self.peek()
        if not char or char not in expected:
            found = repr(char) if char else "the end of the file"
            raise ValueError(f"expected one of {expected!r} at byte {self.offset}, found {found}")
        self._pos += 1
        return char

    def value(self) -> Any:
        """Decodes the next value."""
        self.peek()
        while True:
            try:
                value, end = self._decode(self._window, self._pos)
            except json.JSONDecodeError as error:
                # Cut off by the window, or wrong; only the rest of the file can tell.
                if self._ended:
                    raise ValueError(f"{error.msg} at byte {self._start + error.pos}") from None
            else:
                # A number may go on behind the window, in the worst case at its "e+".
                if self._ended or end + len("e+1") <= len(self._window):
                    break
            self._grow()
        text = self._window[self._pos : end]
        self._pos = end
        check_depth(value, text)
        return value if text.isascii() else json.loads(text.encode("latin-1"))

    def entries(self) -> Iterator[Any]:
        """Decodes the entries of a list, one at a time."""
        self._take("[")
        if self.peek() == "]":
            self._take("]")
            return
        while True:
            yield self.value()
            if self._take(",]") == "]":
                return

    def members(self) -> Iterator[str]:
        """Names the members of an object; the caller takes the value after each."""
        self._take("{")
        if self.peek() == "}":
            self._take("}")
            return
        while True:
            self.peek()
            name = self.value()
            if not isinstance(name, str):
                raise ValueError(f"expected a name in quotes before byte {self.offset}")
            self._take(":")
            yield name
            if self._take(",}") == "}":
                return
