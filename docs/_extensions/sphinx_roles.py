# SPDX-License-Identifier: Apache-2.0
"""Sphinx's roles in docstrings, such as ``:class:`MaskNetwork```, as links of the API reference."""

from __future__ import annotations

import re
from collections.abc import Iterator

import griffe

ROLE = re.compile(r":(?:class|func|meth):`([^`]+)`")


def objects(parent: griffe.Module | griffe.Class) -> Iterator[griffe.Object]:
    """All that is defined in a module or class, at any depth."""
    for member in parent.members.values():
        if not member.is_alias:
            yield member
            if member.is_module or member.is_class:
                yield from objects(member)


class SphinxRoles(griffe.Extension):
    """Links what has a place in the reference; autorefs leaves the rest as code."""

    def on_package(self, *, pkg: griffe.Module, **kwargs) -> None:
        found = list(objects(pkg))
        # Where two modules have the same name, the one that a package exports is meant.
        paths = {obj.name: obj.path for obj in sorted(found, key=lambda obj: obj.is_exported)}
        for obj in (pkg, *found):
            if obj.docstring:
                obj.docstring.value = ROLE.sub(
                    lambda role, obj=obj: self.link(role[1], obj, paths), obj.docstring.value
                )

    def link(self, name: str, obj: griffe.Object, paths: dict[str, str]) -> str:
        """The name as a link.

        Args:
            name: As written: a class, function or ``Class.method``, or a method of one's own class.
            obj: Whose docstring it is in.
            paths: Full names by their last part.
        """
        first, _, rest = name.partition(".")
        try:
            path = obj.resolve(first)
        except griffe.NameResolutionError:
            path = paths.get(first, first)
        path = f"{path}.{rest}" if rest else path
        return f'<autoref identifier="{path}" optional><code>{name}</code></autoref>'
