# SPDX-License-Identifier: Apache-2.0
"""The code blocks of the documentation: found, split into commands by bash, and checked."""

from __future__ import annotations

import argparse
import ast
import copy
import importlib
import importlib.util
import re
import runpy
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from unittest import mock

from markdown_it import MarkdownIt
from mmengine.config import Config
from pip._internal.commands import create_command

from mal_mmdet.apis import read_config

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
COMMENT = re.compile(r"<!--\s*(run by|not run):?\s+(.*?)\s*-->\s*", re.DOTALL)
SHELL = ("shell", "bash")
# What blocks may call; everything else is a command that does not exist.
PROGRAMS = ("python", "bash", "pip", "pip-audit", "pre-commit")
# A program that writes down how it was called.
STUB = """#!/bin/sh
{ printf '%s\\037' "${0##*/}" "$@"; printf '\\036'; } >> "$DOC_CALLS"
"""


@dataclass(frozen=True)
class Block:
    """A fenced block, and the comment that stands before it.

    ``run_by`` are the tests that run its commands on other data, ``not_run`` is the reason why none
    does. A block with neither is run as it stands; a config is loaded. ``prints`` is the text block
    behind it.
    """

    page: Path
    line: int
    language: str
    text: str
    run_by: tuple[str, ...] = ()
    not_run: str = ""
    prints: str = ""

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"

    @property
    def is_run_here(self) -> bool:
        return not (self.run_by or self.not_run or self.is_config)

    @property
    def is_config(self) -> bool:
        return bool(re.search(r"^_base_ = ", self.text, re.MULTILINE))


def find_blocks(page: Path) -> list[Block]:
    """The blocks of a page, in their order."""
    tokens = MarkdownIt().parse(page.read_text(encoding="utf-8"))
    blocks = []
    for i, token in enumerate(tokens):
        if token.type != "fence":
            continue
        comment = tokens[i - 1].content if i and tokens[i - 1].type == "html_block" else ""
        kind, words = m.groups() if (m := COMMENT.fullmatch(comment)) else ("", "")
        following = tokens[i + 1] if i + 1 < len(tokens) else None
        printed = following is not None and following.type == "fence" and following.info == "text"
        blocks.append(
            Block(
                page,
                token.map[0] + 1,
                token.info.strip(),
                token.content,
                run_by=tuple(words.split()) if kind == "run by" else (),
                not_run=" ".join(words.split()) if kind == "not run" else "",
                prints=following.content if printed else "",
            )
        )
    return blocks


class Shell:
    """Lets bash read blocks without running anything: programs only note how they are called.

    Args:
        folder: Working directory of the blocks; gets ``.venv`` and ``calls``.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.bin = folder / ".venv/bin"
        self.bin.mkdir(parents=True)
        (folder / ".venv/lib").symlink_to(Path(sys.prefix) / "lib")
        for name in (*PROGRAMS, "srun"):
            stub = self.bin / name
            stub.write_text(STUB)
            stub.chmod(stub.stat().st_mode | stat.S_IXUSR)

    def calls(self, *command: str | Path, path: str = "") -> list[list[str]]:
        """The programs that a command calls, each with its arguments."""
        log = self.folder / "calls"
        log.write_bytes(b"")
        env = {"PATH": f"{self.bin}{path}", "DOC_CALLS": str(log), "HOME": str(self.folder)}
        done = subprocess.run(
            ["/bin/bash", *command], cwd=self.folder, env=env, capture_output=True, text=True
        )
        if done.returncode:
            raise ValueError(done.stderr.strip() or f"exit code {done.returncode}")
        records = log.read_text().split("\036")[:-1]
        return [record.split("\037")[:-1] for record in records]

    def read(self, block: str) -> list[list[str]]:
        return self.calls("-euo", "pipefail", "-c", block)

    def inside(self, script: Path, args: Sequence[str]) -> list[list[str]]:
        """What one of the launching scripts calls in its turn."""
        return self.calls(script, *args, path=":/usr/bin:/bin")


@contextmanager
def arguments(script: Path, args: Sequence[str]) -> Iterator[None]:
    """``sys.argv`` and ``sys.path`` as a script sees them."""
    path = [str(script.parent), *sys.path]
    with mock.patch.object(sys, "argv", [str(script), *args]), mock.patch.object(sys, "path", path):
        yield


def check_call(call: Sequence[str], shell: Shell) -> None:
    """Checks one call against the real parser of what it calls.

    Raises:
        ValueError: What is wrong with it.
    """
    program, *args = call
    if program == "python":
        check_python(args, shell)
    elif program == "bash":
        check_bash(args, shell)
    elif program == "srun":
        check_call(args[args.index("python") :], shell)
    elif program == "pip":
        parse(create_command(args[0]).parse_args, args[1:])


def check_python(args: Sequence[str], shell: Shell) -> None:
    args = [a for a in args if a != "-u"]
    if args[0] == "-c":
        compile(args[1], "-c", "exec")
    elif args[:2] == ["-m", "torch.distributed.run"]:
        check_python(args[next(i for i, a in enumerate(args) if a.endswith(".py")) :], shell)
    elif args[0] == "-m":
        if importlib.util.find_spec(args[1]) is None:
            raise ValueError(f"there is no module {args[1]}")
    else:
        script = shell.folder / args[0]
        if not script.is_file():
            raise ValueError(f"there is no {args[0]}")
        with arguments(script, args[1:]):
            parsed = parse(parser_of(script.resolve()))
        check_configs(parsed, shell.folder)


@cache
def parser_of(script: Path) -> Callable[[], argparse.Namespace]:
    return runpy.run_path(str(script))["parse_args"]


@cache
def config_of(name: str, folder: Path) -> Config:
    return read_config(name if "::" in name else folder / name)


def check_bash(args: Sequence[str], shell: Shell) -> None:
    script = shell.folder / args[0]
    if not script.is_file():
        raise ValueError(f"there is no {args[0]}")
    if script.name.startswith(("dist_", "slurm_")):
        calls = shell.inside(script, args[1:])
        if not calls:
            raise ValueError(f"{args[0]} calls nothing")
        for call in calls:
            check_call(call, shell)
    elif script.name == "quickstart.sh":  # it stops at what it does not know
        shell.inside(script, [*args[1:], "--help"])


def parse(parser: Callable, *args: list[str]) -> argparse.Namespace:
    """What a parser makes of arguments; what it prints before it gives up becomes the error."""
    with mock.patch.object(sys, "stderr") as stderr:
        try:
            return parser(*args)
        except SystemExit as error:
            said = "".join(c.args[0] for c in stderr.write.call_args_list if c.args)
            raise ValueError(said.strip() or f"exit code {error.code}") from None


def is_placeholder(name: str) -> bool:
    return name == "…" or name.isupper()


def check_configs(args: argparse.Namespace, folder: Path) -> None:
    """Configs that are named exist, and have what ``--cfg-options`` changes."""
    base = getattr(args, "base", None)
    names = [getattr(args, "config", None), base, *getattr(args, "configs", [])]
    names += [row[1] for row in getattr(args, "row", [])]
    names = [name for name in names if name and not is_placeholder(name)]
    for name in names:
        if "::" not in name and not (folder / name).is_file():
            raise ValueError(f"there is no config {name}")
    options = getattr(args, "cfg_options", None) or {}
    for name in [base] if base else names:
        if "::" in name or options:
            cfg = copy.deepcopy(config_of(name, folder))
            for key in options:
                check_option(cfg, key, name)
            cfg.merge_from_dict(options)


def check_option(cfg: Config, key: str, name: str) -> None:
    node = cfg
    for part in key.split(".")[:-1]:
        if isinstance(node, (list, tuple)):
            if int(part) >= len(node):
                raise ValueError(f"{name} has no {key}: the list ends before {part}")
            node = node[int(part)]
        elif node is not None and part in node:
            node = node[part]
        else:
            raise ValueError(f"{name} has no {key}: there is no {part}")


def check_imports(text: str) -> None:
    """Compiles a block of Python and looks up what it imports.

    Raises:
        ValueError: No such module, or it has no such name.
        SyntaxError: It is no Python.
    """
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ImportFrom):
            module = importlib.import_module(node.module)
            for alias in node.names:
                if not hasattr(module, alias.name):
                    raise ValueError(f"{node.module} has no {alias.name}")
        elif isinstance(node, ast.Import):
            for alias in node.names:
                importlib.import_module(alias.name)


def run_call(call: Sequence[str], folder: Path) -> None:
    """Runs ``python …`` in this process, where everything is imported already.

    Raises:
        ValueError: It is something else, or did not end with exit code 0.
    """
    program, *args = call
    if program != "python":
        raise ValueError(f"only python is run here, not {' '.join(call)}: say what runs it")
    first, *rest = args
    try:
        if first == "-c":
            with mock.patch.object(sys, "argv", ["-c", *rest[1:]]):
                exec(rest[0], {"__name__": "__main__"})
        elif first == "-m":
            with mock.patch.object(sys, "argv", rest):
                runpy.run_module(rest[0], run_name="__main__")
        else:
            with arguments(folder / first, rest):
                runpy.run_path(str(folder / first), run_name="__main__")
    except SystemExit as error:
        if error.code:
            raise ValueError(f"{' '.join(call)} ended with {error.code}") from None


def run_python(block: Block, names: dict) -> None:
    """Runs a block of Python; what it defines is there for the next one."""
    exec(compile(block.text, str(block), "exec"), names)


def printed_pattern(text: str) -> re.Pattern[str]:
    """Lines that are printed in this order, among others, and with any figures."""
    words = ".*?".join(map(re.escape, text.strip().splitlines()))
    return re.compile(re.sub(r"\d+(\\\.\d+)?", r"[\\d.]+", words), re.DOTALL)


def missing_tests(block: Block) -> list[str]:
    """Tests that are said to run a block and do not exist, or never name its tools."""
    wrong = []
    named = ""
    for test in block.run_by:
        file, _, name = test.partition("::")
        path = ROOT / file
        source = path.read_text(encoding="utf-8") if path.is_file() else "pass"
        names = {n.name for n in ast.walk(ast.parse(source)) if isinstance(n, ast.FunctionDef)}
        if name not in names:
            wrong.append(f"there is no test {test}")
        named += source
    if block.run_by and block.language in SHELL:
        text = re.sub(r"#.*", "", block.text)
        for tool in re.findall(r"tools/(?:\w+/)*(?:slurm_|dist_)?(\w+)\.(?:py|sh)", text):
            if tool not in named:
                wrong.append(f"none of {', '.join(block.run_by)} names the tool {tool}")
    return wrong
