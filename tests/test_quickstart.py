# SPDX-License-Identifier: Apache-2.0
"""The quickstart's bookkeeping; the stages themselves are the tools, tested elsewhere."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

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
    assert set(json.loads((tmp_path / "spans.json").read_text())) == {"stage"}


def test_a_failing_stage_stops_with_its_output_and_is_not_done(tmp_path):
    """Its time counts all the same: the next attempt adds to it."""
    script = tmp_path / "stage.py"
    script.write_text("raise RuntimeError('the reason')")
    with pytest.raises(SystemExit, match=r"(?s)stage failed.*the reason"):
        quickstart.Stages(tmp_path).run("stage", tmp_path, script)
    failed = json.loads((tmp_path / "spans.json").read_text())["stage"]
    assert not failed["done"] and len(failed["spans"]) == 1
    script.write_text("")
    quickstart.Stages(tmp_path).run("stage", tmp_path, script)
    stage = json.loads((tmp_path / "spans.json").read_text())["stage"]
    assert stage["done"] and stage["spans"][0] == failed["spans"][0] and len(stage["spans"]) == 2


def test_stages_side_by_side_count_once():
    assert quickstart.covered([]) == 0
    assert quickstart.covered([[10.0, 14.0], [20.0, 21.0]]) == 5
    assert quickstart.covered([[20.0, 21.0], [10.0, 14.0], [11.0, 12.0], [13.0, 15.0]]) == 6


# Tells the other that it is there, and waits for it.
MEET = """
import pathlib, sys, time
pathlib.Path(sys.argv[1]).touch()
end = time.time() + 30
while not pathlib.Path(sys.argv[2]).exists():
    assert time.time() < end, "nobody came"
    time.sleep(0.01)
"""


@pytest.fixture
def meet(tmp_path):
    (tmp_path / "meet.py").write_text(MEET)
    (tmp_path / "fail.py").write_text(MEET + "raise RuntimeError('the reason')")
    return tmp_path


def test_lanes_overlap(meet):
    stages, one, two = quickstart.Stages(meet), meet / "one", meet / "two"
    quickstart.side_by_side(
        stages,
        lambda: stages.run("first", one, meet / "meet.py", one, two),
        lambda: stages.run("second", two, meet / "meet.py", two, one),
    )
    apart = [stages.stages[name]["spans"] for name in ("first", "second")]
    assert quickstart.covered(apart[0] + apart[1]) < sum(map(quickstart.covered, apart))
    assert set(stages.seconds) == {"first", "second", "total"}


def test_what_runs_beside_a_failing_stage_ends_and_nothing_else_starts(meet):
    stages, never = quickstart.Stages(meet), meet / "never"
    failing, beside = meet / "failing", meet / "beside"
    (meet / "slow.py").write_text(f"{MEET}\ntime.sleep(2)\npathlib.Path(sys.argv[3]).touch()")

    def lane():
        stages.run("slow", beside, meet / "slow.py", meet / "slow", failing, beside)
        stages.run("after it", never, meet / "meet.py", never, never)

    with pytest.raises(SystemExit, match=r"(?s)^fail failed.*the reason"):
        quickstart.side_by_side(
            stages,
            lane,
            lambda: stages.run("fail", failing, meet / "fail.py", failing, meet / "slow"),
        )
    assert beside.exists() and not never.exists()
    done = {name: stage["done"] for name, stage in stages.stages.items()}
    assert done == {"slow": True, "fail": False, "after it": False}
    assert not stages.stages["after it"]["spans"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_end_the_stages(meet, number):
    """The signal goes to the quickstart alone, as a service's does."""
    (meet / "job.py").write_text(
        "import pathlib, signal, sys\n"
        f"sys.path.insert(0, {str(ROOT / 'tools')!r})\n"
        "import quickstart\n"
        "signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))\n"
        # A shell lets what it starts in the background ignore Ctrl-C.
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        f"folder = pathlib.Path({str(meet)!r})\n"
        "stages = quickstart.Stages(folder)\n"
        "def lane(name):\n"
        "    stages.run(name, folder, folder / 'long.py', folder / name)\n"
        "quickstart.side_by_side(stages, lambda: lane('a'), lambda: lane('b'))\n"
    )
    (meet / "long.py").write_text(
        "import os, pathlib, sys, time\n"
        "pathlib.Path(sys.argv[1]).write_text(str(os.getpid()))\n"
        "time.sleep(600)\n"
    )
    job = subprocess.Popen([sys.executable, meet / "job.py"], stderr=subprocess.PIPE)
    end = time.monotonic() + 300
    try:
        while not all((meet / name).exists() and (meet / name).read_text() for name in "ab"):
            assert time.monotonic() < end and job.poll() is None
            time.sleep(0.05)
        job.send_signal(number)
        job.communicate(timeout=120)
    finally:
        job.kill()
    assert job.returncode
    for name in "ab":
        assert not Path(f"/proc/{(meet / name).read_text()}").exists()


def test_summary(tmp_path, capsys):
    for name, miou in dict(mal=0.8, box=0.5, grabcut=0.6).items():
        (tmp_path / f"miou_{name}.json").write_text(json.dumps(dict(miou=miou)))
    for name, ap in dict(mal=0.36, human=0.4, box=0.2).items():
        for when, value in (("20260101_1", 0.0), ("20260101_2", ap)):  # the last test counts
            folder = tmp_path / f"test_{name}" / when
            folder.mkdir(parents=True)
            (folder / f"{when}.json").write_text(json.dumps({"coco/segm_mAP": value}))
    seconds = dict(a=1.5, b=2.0, total=2.5)
    summary = quickstart.summarize(tmp_path, seconds)
    assert summary["label_miou"] == 0.8 and summary["mask_ap"]["human"] == 0.4
    assert summary["retention"] == pytest.approx(0.9)
    assert summary["seconds"] == seconds
    quickstart.print_summary(summary)
    shown = capsys.readouterr().out
    assert "retention: 0.900" in shown and "time: 2 s" in shown


def test_help_and_unknown_options():
    script = ROOT / "tools/quickstart.sh"
    shown = subprocess.run(["bash", script, "--help"], capture_output=True, text=True, check=True)
    for option in ("--python", "--work-dir", "--skip-install", "--device"):
        assert option in shown.stdout
    wrong = subprocess.run(["bash", script, "--gpu"], capture_output=True, text=True)
    assert wrong.returncode == 2 and "unknown option --gpu" in wrong.stderr
