# SPDX-License-Identifier: Apache-2.0
import re

from tests.conftest import ROOT


def test_every_test_that_the_documentation_names_exists():
    named = set(re.findall(r"`(test_\w+)`", (ROOT / "docs/reliability.md").read_text()))
    files = [path.read_text() for path in (ROOT / "tests").rglob("test_*.py")]
    found = {name for text in files for name in re.findall(r"^def (test_\w+)\(", text, re.M)}
    assert len(named) > 20 and named <= found, named - found
