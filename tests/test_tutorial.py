# SPDX-License-Identifier: Apache-2.0
"""The tutorial runs from top to bottom, small, and stands in the repository as it was run."""

import json
import re
from tempfile import TemporaryDirectory

import nbformat
import pytest
from nbclient import NotebookClient
from traitlets.config import Config

from tests.conftest import ROOT

TUTORIAL = ROOT / "demo/mal_tutorial.ipynb"
SMALL = """
import torch
from yapf.yapflib import yapf_api

torch.set_num_threads(1)
# A runner formats its config four times, which takes longer than all that it does here.
yapf_api.FormatCode = lambda text, **options: (text, False)
NUM_TRAIN, NUM_VAL = 8, 2
EPOCHS = 2
DETECTOR_EPOCHS = 1
WORK_DIR = Path("small")
"""


@pytest.fixture
def notebook():
    return nbformat.read(TUTORIAL, as_version=4)


def printed(cell) -> str:
    return "".join(output.get("text", "") for output in cell.get("outputs", []))


def test_it_runs_from_top_to_bottom(notebook, tmp_path, monkeypatch):
    """With other parameters, of which every one counts; any error ends it."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    (place,) = (
        i for i, c in enumerate(notebook.cells) if "parameters" in c.metadata.get("tags", [])
    )
    notebook.cells.insert(place + 1, nbformat.v4.new_code_cell(SMALL))
    resources = dict(metadata=dict(path=tmp_path))
    # Of TCP's ports, another process could take one before the kernel does.
    with TemporaryDirectory(dir="/tmp") as folder:  # sockets need short names
        config = Config(ConnectionFileMixin=dict(transport="ipc", ip=f"{folder}/kernel"))
        NotebookClient(notebook, config=config, timeout=300, resources=resources).execute()

    cells = {cell["id"]: cell for cell in notebook.cells}
    work_dir = tmp_path / "small"
    assert "8 images" in printed(cells["boxes"])
    assert (work_dir / "mal/epoch_2.pth").exists() and (work_dir / "detector/epoch_1.pth").exists()
    boxes = json.loads((work_dir / "data/boxes_train.json").read_text())["annotations"]
    labels = json.loads((work_dir / "instances_train_mal.json").read_text())["annotations"]
    assert [a["id"] for a in labels] == [a["id"] for a in boxes]
    assert all("segmentation" in a for a in labels)
    for name in ("image", "crops", "losses", "sheet", "attention", "quality", "inferencer"):
        assert any("data" in output for output in cells[name].outputs), name
    assert 0 < float(re.search(r"Mask Auto-Labeler +mean IoU (.*)", printed(cells["miou"]))[1]) < 1


def test_it_is_stored_with_the_pictures_of_a_run_and_no_error(notebook):
    assert TUTORIAL.stat().st_size < 300_000
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    outputs = [output for cell in code for output in cell.outputs]
    assert not any(output.output_type == "error" for output in outputs)
    assert sum("image/jpeg" in output.get("data", {}) for output in outputs) >= 4
    text = TUTORIAL.read_text(encoding="utf-8")
    assert str(ROOT) not in text and "/site-packages/" not in text


def test_links_lead_somewhere(notebook):
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            for target in re.findall(r"\]\(([^)#]+)[^)]*\)", cell.source):
                assert (TUTORIAL.parent / target).exists(), target
