# SPDX-License-Identifier: Apache-2.0
from pathlib import Path

from setuptools import find_packages, setup

root = Path(__file__).parent
version: dict[str, str] = {}
exec((root / "mal_mmdet" / "version.py").read_text(), version)

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
)
