# SPDX-License-Identifier: Apache-2.0
"""What is released: sdist and wheel, with configs and tools, that work away from the repository."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from mmdet.registry import MODELS
from mmengine.config import Config

from mal_mmdet import __version__
from mal_mmdet.env import collect_env
from tests.conftest import ROOT

PIP = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q"]

USE = """
import numpy as np
import mal_mmdet
from mal_mmdet.apis import MALInferencer
from mal_mmdet.env import collect_env
from mmengine.hub import get_config

print(mal_mmdet.__file__)
print(collect_env()["mal_mmdet"])
infer = MALInferencer("mal_vit-demo_1xb16_demo", "mal.pth", device="cpu", show_progress=False)
result = infer(np.zeros((50, 60, 3), np.uint8), [[10, 10, 40, 30]])
print(result["predictions"][0]["masks"][0]["size"])
print(get_config("mal_mmdet::mal/mal_vit-base-mae_8xb4-10e_coco.py").model.type)
"""


def run(*command, **options) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, **options)
    assert not done.returncode, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    """A copy of what releases are made of: building leaves files behind."""
    copy = tmp_path_factory.mktemp("release") / "source"
    ignore = shutil.ignore_patterns(".mim", "__pycache__")
    for name in ("mal_mmdet", "configs", "tools"):
        shutil.copytree(ROOT / name, copy / name, ignore=ignore)
    for path in ROOT.iterdir():
        if path.is_file() and path.name != ".git":
            shutil.copy(path, copy)
    return copy


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_wheel_of_the_sdist_works_elsewhere(source, tmp_path):
    run(sys.executable, "setup.py", "-q", "sdist", "-d", tmp_path, cwd=source)
    sdist = tmp_path / f"mal_mmdet-{__version__}.tar.gz"
    run(*PIP, "wheel", "--no-deps", "--no-build-isolation", "-w", tmp_path, sdist)
    (wheel,) = tmp_path.glob(f"mal_mmdet-{__version__}-*.whl")
    installed = tmp_path / "installed"
    run(*PIP, "install", "--no-deps", "--no-compile", "--target", installed, wheel)
    mim = installed / "mal_mmdet" / ".mim"
    for name in ("configs", "tools"):
        assert files(mim / name) == files(source / name)
    assert (mim / "model-index.yml").read_bytes() == (source / "model-index.yml").read_bytes()
    assert os.access(mim / "tools/dist_train.sh", os.X_OK)
    model = MODELS.build(Config.fromfile(ROOT / "configs/mal/mal_vit-demo_1xb16_demo.py").model)
    torch.save(dict(state_dict=model.state_dict()), tmp_path / "mal.pth")
    env = os.environ | dict(PYTHONPATH=str(installed), OMP_NUM_THREADS="1")
    printed = run(sys.executable, "-c", USE, cwd=tmp_path, env=env).splitlines()
    assert str(installed / "mal_mmdet/__init__.py") in printed
    assert __version__ in printed and "[50, 60]" in printed
    assert printed[-1] == "MaskAutoLabeler"


def test_development_install_links(source, tmp_path):
    options = ("--no-deps", "--no-build-isolation", "--target", tmp_path)
    run(*PIP, "install", *options, "-e", source)
    mim = source / "mal_mmdet" / ".mim"
    for name in ("configs", "tools", "model-index.yml"):
        assert (mim / name).is_symlink() and (mim / name).resolve() == source / name


def test_env_names_what_a_bug_report_needs():
    env = collect_env()
    assert env["mal_mmdet"] == __version__ and env["torch"] == torch.__version__
    wanted = {"Python", "CUDA available", "GCC", "mmcv", "mmdet", "mmpretrain", "pycocotools"}
    assert wanted <= env.keys() and all(isinstance(value, str) for value in env.values())


def test_version_stands_in_one_place():
    with open(ROOT / "CITATION.cff", encoding="utf-8") as file:
        citation = yaml.safe_load(file)
    assert "version" not in citation
    paper = citation["preferred-citation"]
    assert paper["title"] == "Vision Transformers Are Good Mask Auto-Labelers"
    places = [ROOT / "setup.py", ROOT / "pyproject.toml", *(ROOT / "mal_mmdet").rglob("*.py")]
    found = [path for path in places if f'"{__version__}"' in path.read_text(encoding="utf-8")]
    assert found == [ROOT / "mal_mmdet/version.py"]
