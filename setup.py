# SPDX-License-Identifier: Apache-2.0
import os
import shutil
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

root = Path(__file__).parent
version: dict[str, str] = {}
exec((root / "mal_mmdet" / "version.py").read_text(), version)


class BuildWithMim(build_py):
    """Puts configs, tools and model index into ``mal_mmdet/.mim``, where mim and MMEngine look.

    A wheel gets copies, a development install links.
    """

    def run(self) -> None:
        super().run()
        package = root if self.editable_mode else Path(self.build_lib)
        mim = package / "mal_mmdet" / ".mim"
        shutil.rmtree(mim, ignore_errors=True)
        mim.mkdir(parents=True)
        for name in ("configs", "tools", "model-index.yml"):
            if self.editable_mode:
                (mim / name).symlink_to(os.path.join("..", "..", name))
            elif (root / name).is_dir():
                shutil.copytree(
                    root / name, mim / name, ignore=shutil.ignore_patterns("__pycache__")
                )
            else:
                shutil.copy(root / name, mim / name)


setup(
    name="mal_mmdet",
    version=version["__version__"],
    description="Mask Auto-Labeler: instance masks from boxes alone, as an OpenMMLab plugin",
    long_description=(root / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    packages=find_packages(include=["mal_mmdet", "mal_mmdet.*"]),
    package_data={"mal_mmdet.visualization": ["review/*"]},
    python_requires=">=3.10",
    install_requires=(root / "requirements.txt").read_text().splitlines(),
    cmdclass=dict(build_py=BuildWithMim),
)
