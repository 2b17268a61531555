# SPDX-License-Identifier: Apache-2.0
import pytest
from packaging.requirements import Requirement

from mal_mmdet.dependencies import check_dependencies
from tests.conftest import ROOT


def test_the_installed_packages_serve():
    check_dependencies()


def test_a_missing_package_is_named_with_its_remedy():
    with pytest.raises(ImportError, match=r"needs no_such_package.*pip install some-name"):
        check_dependencies(dict(no_such_package=(None, "some-name")))


def test_a_package_that_breaks_beside_another_is_named_with_its_remedy(tmp_path, monkeypatch):
    (tmp_path / "breaks_on_import.py").write_text("class Model(None):\n    pass\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ImportError, match=r"breaks_on_import.*TypeError.*pip install 'other<5'"):
        check_dependencies(dict(breaks_on_import=(None, "'other<5'")))


def test_an_old_package_is_named_with_both_versions():
    import mmdet

    with pytest.raises(ImportError, match=rf"mmdet 99\.0 or newer, but {mmdet.__version__}"):
        check_dependencies(dict(mmdet=("99.0", "onedl-mmdetection")))


def test_the_lowest_constraints_are_the_lowest_of_the_requirements():
    needed, lowest = (
        [Requirement(x) for x in (ROOT / file).read_text().splitlines() if x[:1] != "#"]
        for file in ("requirements.txt", "constraints-lowest.txt")
    )
    assert [r.name for r in needed] == [r.name for r in lowest]
    for requirement, pin in zip(needed, lowest):
        [bound] = [s.version for s in requirement.specifier if s.operator == ">="]
        assert pin.specifier.contains(bound), (requirement, pin)
