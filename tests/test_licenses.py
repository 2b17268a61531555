# SPDX-License-Identifier: Apache-2.0
"""docs/dependencies.md and constraints.txt name everything that an installation brings with it."""

import re
from importlib.metadata import PackageNotFoundError, requires, version

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.conftest import ROOT


def closure(requirements: list[str]) -> set[str]:
    """Names of the packages that are installed for requirements, and for theirs."""
    found: set[tuple[str, frozenset]] = set()
    todo = [Requirement(line) for line in requirements]
    while todo:
        package = todo.pop()
        key = canonicalize_name(package.name), frozenset(package.extras)
        if key in found:
            continue
        try:
            needs = [Requirement(line) for line in requires(package.name) or []]
        except PackageNotFoundError:
            continue  # optional, such as the CUDA libraries of a CPU build
        found.add(key)
        for extra in ("", *package.extras):
            todo += [r for r in needs if not r.marker or r.marker.evaluate(dict(extra=extra))]
    return {name for name, _ in found}


def requirements(*files: str) -> list[str]:
    return [line for file in files for line in (ROOT / file).read_text().split()]


def test_every_dependency_is_listed():
    tables = (ROOT / "docs/dependencies.md").read_text().split("\n| license | packages |\n")[1:]
    first, second = (
        [
            name.strip(" *")
            for names in re.findall(r"^\| .+ \| (.+) \|$", table, re.M)[1:]
            for name in names.split(",")
        ]
        for table in tables
    )
    assert len({*first, *second}) == len(first) + len(second)
    needed = closure(requirements("requirements.txt"))
    assert len(needed) > 50
    assert needed <= set(first), f"not listed: {sorted(needed - set(first))}"
    others = closure(requirements("requirements-dev.txt")) - needed
    assert others <= {*first, *second}, f"not listed: {sorted(others - {*first, *second})}"


def test_constraints_are_what_is_installed():
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = [Requirement(line) for line in lines if not line.startswith("#")]
    pins = {canonicalize_name(pin.name): pin for pin in pins}
    direct = requirements("requirements.txt", "requirements-dev.txt")
    installed = closure(direct) - {"pip", "setuptools"}
    assert installed <= set(pins), f"not pinned: {sorted(installed - set(pins))}"
    for name in installed:
        pin = pins[name]
        if pin.marker is None or pin.marker.evaluate():
            assert pin.specifier.contains(version(name), prereleases=True), (pin, version(name))
