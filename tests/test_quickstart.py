# SPDX-License-Identifier: Apache-2.0
"""The quickstart's bookkeeping; the stages themselves are the tools, tested elsewhere."""

import json
import subprocess
import sys

import pytest

from tests.conftest import ROOT

sys.path.insert(0, str(ROOT / "tools"))
import quickstart


def test_a_stage_runs_once_and_again_when_its_result_is_gone(tmp_path):
    script, result = tmp_path / "stage.py", tmp_path / "result"
    script.write_text(
        f"with open({str(result)!r}, 'a') as f: f.write('x')\nprint('Epoch(train) [1]')"
    )
    for expected in ("x", "x"):
        quickstart.Stages(tmp_path).run("stage", result, script)
        assert result.read_text() == expected
    result.unlink()
    quickstart.Stages(tmp_path).run("stage", result, script)
    assert result.read_text() == "x"
    assert set(json.loads((tmp_path / "stages.json").read_text())) == {"stage"}


def test_a_failing_stage_stops_with_its_output_and_is_not_done(tmp_path):
    """Its time counts all the same: the next attempt adds to it."""
    script = tmp_path / "stage.py"
    script.write_text("raise RuntimeError('the reason')")
    with pytest.raises(SystemExit, match=r"(?s)stage failed.*the reason"):
        quickstart.Stages(tmp_path).run("stage", tmp_path, script)
    failed = json.loads((tmp_path / "stages.json").read_text())["stage"]
    assert not failed["done"] and failed["seconds"] > 0
    script.write_text("")
    quickstart.Stages(tmp_path).run("stage", tmp_path, script)
    stage = json.loads((tmp_path / "stages.json").read_text())["stage"]
    assert stage["done"] and stage["seconds"] > failed["seconds"]


def test_summary(tmp_path, capsys):
    for name, miou in dict(mal=0.8, box=0.5, grabcut=0.6).items():
        (tmp_path / f"miou_{name}.json").write_text(json.dumps(dict(miou=miou)))
    for name, ap in dict(mal=0.36, human=0.4, box=0.2).items():
        for time, value in (("20260101_1", 0.0), ("20260101_2", ap)):  # the last test counts
            folder = tmp_path / f"test_{name}" / time
            folder.mkdir(parents=True)
            (folder / f"{time}.json").write_text(json.dumps({"coco/segm_mAP": value}))
    summary = quickstart.summarize(tmp_path, dict(a=1.5, b=2.0))
    assert summary["label_miou"] == 0.8 and summary["mask_ap"]["human"] == 0.4
    assert summary["retention"] == pytest.approx(0.9)
    assert summary["seconds"] == dict(a=1.5, b=2.0, total=3.5)
    quickstart.print_summary(summary)
    assert "retention: 0.900" in capsys.readouterr().out


def test_help_and_unknown_options():
    script = ROOT / "tools/quickstart.sh"
    shown = subprocess.run(["bash", script, "--help"], capture_output=True, text=True, check=True)
    for option in ("--python", "--work-dir", "--skip-install", "--device"):
        assert option in shown.stdout
    wrong = subprocess.run(["bash", script, "--gpu"], capture_output=True, text=True)
    assert wrong.returncode == 2 and "unknown option --gpu" in wrong.stderr
