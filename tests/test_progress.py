# SPDX-License-Identifier: Apache-2.0
"""Progress on a terminal and in a pipe."""

import hashlib
import importlib
import json
import os
import pty
import re
import subprocess
import sys
from types import SimpleNamespace

import pytest
from mmengine.logging import MMLogger
from mmengine.runner import Runner
from rich.console import Console

from mal_mmdet import progress
from mal_mmdet.datasets import CocoBoxDataset
from mal_mmdet.datasets.demo_dataset import make_demo_dataset
from mal_mmdet.engine import ProgressHook
from mal_mmdet.evaluation import evaluate_label_files
from mal_mmdet.labeling import (
    apply_review,
    export_labels,
    read_coco,
    stream_json,
    write_boxes_only,
)
from mal_mmdet.labeling.baselines import label_with_baseline
from mal_mmdet.progress import Meter, rate_text, time_left, track
from mal_mmdet.visualization import draw_label_sheet, write_review_page
from tests.conftest import ROOT, tiny_config

CONTROL = re.compile(r"[\x00-\x09\x0b-\x1f]")  # all but the end of a line
SHOW_CURSOR, HIDE_CURSOR = "\x1b[?25h", "\x1b[?25l"


@pytest.fixture
def terminal(capsys, monkeypatch):
    """Lets standard output, which is captured, be a terminal; gives what it was sent so far."""
    console = Console(force_terminal=True, width=100, _environ=dict(TERM="xterm-256color"))
    monkeypatch.setattr(progress, "get_console", lambda: console)
    sent = []

    def read() -> str:
        sent.append(capsys.readouterr().out)
        return "".join(sent)

    return read


@pytest.fixture
def clock(monkeypatch):
    """Seconds that pass only when they are added to ``clock.now``."""
    clock = SimpleNamespace(now=100.0)
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: clock.now))
    return clock


def plain(text: str) -> str:
    """Without what moves the cursor and colours; what was erased is a line of its own."""
    return re.sub(r"\x1b\[[?\d;]*[A-Za-z]|\r", "", text.replace("\x1b[2K", "\n"))


@pytest.mark.parametrize(
    ("count", "seconds", "text"),
    [
        (30, 2, "15.0 boxes/s"),
        (40_000, 1, "40,000.0 boxes/s"),
        (1, 1, "1.0 boxes/s"),
        (1, 30, "2.0 boxes/min"),
        (1, 1800, "2.0 boxes/h"),
        (1, 36000, "0.1 boxes/h"),
    ],
)
def test_rate(count, seconds, text):
    assert rate_text(count, seconds, "boxes") == text


def test_time_left():
    assert time_left(30, 90, 0, 60.0) == "0:02:00 left"
    assert time_left(50, 90, 40, 60.0) == "0:04:00 left"  # 40 were done before
    assert time_left(40, 90, 40, 60.0) == time_left(30, None, 0, 60.0) == ""


def test_a_pipe_gets_a_line_now_and_then(capsys, clock):
    """Every 30 seconds of 100, and at the end."""
    meter = Meter("labeling", "boxes", total=400, done=200)
    for _ in range(100):
        clock.now += 1.0
        meter.advance(2)
    meter.stop()
    meter.stop()
    assert capsys.readouterr().out.splitlines() == [
        "labeling: 260 of 400 boxes (65%), 2.0 boxes/s, 0:01:10 left",
        "labeling: 320 of 400 boxes (80%), 2.0 boxes/s, 0:00:40 left",
        "labeling: 380 of 400 boxes (95%), 2.0 boxes/s, 0:00:10 left",
        "labeling: 400 boxes, 2.0 boxes/s, 0:01:40 in all",
    ]


def test_a_pipe_hears_how_far_a_broken_loop_came(capsys, clock):
    def loop():
        for i in track(range(8), "reading", "rows"):
            clock.now += 10.0
            if i == 6:
                raise KeyError(i)

    with pytest.raises(KeyError):
        loop()
    lines = capsys.readouterr().out.splitlines()
    assert lines == [
        "reading: 3 of 8 rows (38%), 6.0 rows/min, 0:00:50 left",
        "reading: 6 of 8 rows (75%), 6.0 rows/min, 0:00:20 left",
        "reading: 6 of 8 rows (75%), 5.1 rows/min, 0:01:10 in all",
    ]


def test_without_a_total_there_is_a_rate_alone(capsys, clock):
    for _ in track(iter(range(7)), "reading", "rows"):
        clock.now += 5.0
    assert capsys.readouterr().out.splitlines() == [
        "reading: 6 rows, 12.0 rows/min",
        "reading: 7 rows, 12.0 rows/min, 0:00:35 in all",
    ]


def test_nothing_is_said_of_nothing_or_when_disabled(capsys):
    assert list(track([], "reading", "rows")) == []
    assert list(track([1, 2], "reading", "rows", disable=True)) == [1, 2]
    Meter("training", "iterations", 1, bar_only=True).advance()
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("fixture", ["terminal", "clock"])
def test_other_ranks_are_quiet(capsys, monkeypatch, request, fixture):
    request.getfixturevalue(fixture)
    monkeypatch.setattr(progress, "is_main_process", lambda: False)
    assert list(track([1, 2], "reading", "rows")) == [1, 2]
    assert capsys.readouterr().out == ""


def test_a_terminal_gets_a_bar(terminal):
    assert list(track([*"abc"], "reading [bold]", "rows")) == [*"abc"]
    sent = terminal()
    assert sent.startswith(HIDE_CURSOR) and sent.endswith(SHOW_CURSOR)
    assert re.search(r"reading \[bold\] ━+ 3/3 [\d,.]+ rows/s, 0:\d\d:\d\d in all", plain(sent))


@pytest.mark.parametrize("end", ["]", "x"])
def test_the_first_pass_over_a_long_file_has_a_bar_on_a_terminal_alone(
    terminal, monkeypatch, tmp_path, end
):
    path = tmp_path / "boxes.json"
    path.write_text('{"annotations": [' + ", ".join(["{}"] * 300) + end + "}")
    bars = len(progress._with_bars)
    for is_terminal in (True, False):
        if not is_terminal:
            monkeypatch.setattr(progress, "get_console", lambda: Console(force_terminal=False))
        before = len(terminal())
        if end == "]":
            assert len(stream_json(path, "annotations")["annotations"]) == 300
        else:
            with pytest.raises(ValueError, match=r"expected one of ',]'.*found 'x'"):
                stream_json(path, "annotations")
        assert len(progress._with_bars) == bars
        sent = terminal()[before:]
        assert ("opening boxes.json" in plain(sent)) == is_terminal, sent


def test_logs_and_prints_go_by_above_the_bars(terminal):
    """Also with a bar in a bar; afterwards the logger writes where it did before."""
    logger = MMLogger.get_instance("above_the_bars")
    stdout = sys.stdout
    assert logger.handlers[0].stream is stdout
    for i in track(range(2), "outer", "rows"):
        for _ in track(range(3), "inner", "parts"):
            pass
        logger.warning(f"logged {i}")
        print(f"printed {i}")
    assert sys.stdout is stdout and logger.handlers[0].stream is stdout
    sent = terminal()
    lines = plain(sent).splitlines()
    for i in range(2):
        assert any(re.search(rf" logged {i}\s*$", line) for line in lines)
        assert f"printed {i}" in lines  # a line for itself
    assert sent.count(HIDE_CURSOR) == 1  # one display


def test_a_forked_process_has_its_output_without_the_bar(terminal):
    """A worker of a data loader, say, for which the bar's locks may be held for ever."""
    logger = MMLogger.get_instance("before_the_fork")
    stdout, stderr = sys.stdout, sys.stderr
    meters = [Meter(name, "rows", 2) for name in ("outer", "inner")]
    assert sys.stdout is not stdout
    child = os.fork()
    if not child:
        streams = sys.stdout, sys.stderr, logger.handlers[0].stream
        os._exit(0 if streams == (stdout, stderr, stdout) else 3)
    assert os.waitpid(child, 0)[1] == 0
    for meter in reversed(meters):
        meter.stop()
    assert sys.stdout is stdout and terminal().count("inner") >= 1


@pytest.mark.parametrize("shown", [True, False], ids=["terminal", "pipe"])
def test_training_and_testing(demo, tmp_path, request, capsys, shown):
    """A bar with the log lines above it, or log lines alone; the same training."""
    if shown:
        terminal = request.getfixturevalue("terminal")
    options = {"log_level": "INFO", "default_hooks.logger.interval": 2}
    cfg = tiny_config(demo, tmp_path, **options, **{"train_cfg.max_epochs": 1})
    runner = Runner.from_cfg(cfg)
    runner.register_hook(ProgressHook())
    runner.train()
    runner.test()
    text = plain(terminal()) if shown else capsys.readouterr().out
    total = runner.max_iters
    assert bool(re.search(rf"training ━+ {total}/{total} [\d.]+ iterations/(s|min)", text)) == shown
    assert bool(re.search(r"testing ━+ 4/4 [\d.]+ iterations/(s|min)", text)) == shown
    assert bool(re.search(r"comparing masks ━+ ", text)) == shown
    assert f"Epoch(train) [1][2/{total}]" in text and "loss_mil" in text
    if not shown:
        assert not CONTROL.search(text) and not re.search(r"^(training|testing): ", text, re.M)
        assert re.search(r"comparing masks: \d+ masks, .* in all\n", text)


def write_decisions(truth, path):
    """Of a review in which nothing was decided."""
    labels = dict(name=truth.name, sha256=hashlib.sha256(truth.read_bytes()).hexdigest())
    decisions = dict(accepted=[], rejected=[], flagged=[])
    content = dict(format="mal_mmdet review", version=1, labels=labels) | decisions
    path.write_text(json.dumps(content))
    return path


# What each says, and how it is called with the demo's masks, the folder of their images, and a
# folder to write to.
LONG = {
    "writing boxes: 9 boxes": lambda truth, images, out: write_boxes_only(truth, out / "b.json"),
    "box: 4 images": lambda truth, images, out: label_with_baseline(
        "box", truth, images, out / "l.json"
    ),
    "comparing masks: 9 masks": lambda truth, images, out: evaluate_label_files(truth, truth),
    "checking masks: 9 masks": lambda truth, images, out: export_labels(
        "yolo", read_coco(truth), out
    ),
    "converting masks: 4 images": lambda truth, images, out: export_labels(
        "cvat", read_coco(truth), out
    ),
    "drawing thumbnails: 4 images": lambda truth, images, out: write_review_page(
        truth, images, out / "page"
    ),
    "writing labels: 9 boxes": lambda truth, images, out: apply_review(
        truth, write_decisions(truth, out / "d.json"), out / "l.json"
    ),
    "comparing masks: 9": lambda truth, images, out: draw_label_sheet(
        truth, truth, images, out / "s.png", number=1, order="worst"
    ),
    "reading boxes: 9 boxes": lambda truth, images, out: CocoBoxDataset(
        ann_file=str(truth), data_prefix=dict(img=str(images)), pipeline=[]
    ),
    "composing val: 1 images": lambda truth, images, out: make_demo_dataset(out, 0, 0, 1),
}


@pytest.mark.parametrize("line", LONG)
def test_what_takes_long_on_large_input_says_how_far_it_is(demo, tmp_path, capsys, line):
    LONG[line](demo / "instances_val.json", demo / "val", tmp_path)
    out = capsys.readouterr().out
    assert re.search(rf"^{line}\b.*/(s|min), 0:\d\d:\d\d in all$", out, re.MULTILINE)
    assert not CONTROL.search(out)


def test_the_quickstart_passes_progress_on(tmp_path, monkeypatch, capsys):
    monkeypatch.syspath_prepend(ROOT / "tools")
    stages = importlib.import_module("quickstart").Stages(tmp_path)
    lines = [
        "11/25 17:46:06 - mmengine - INFO - Epoch(train)  [3][25/47]  eta: 0:19:03",
        "grabcut: 260 of 400 images (65%), 2.0 images/s, 0:01:10 left",
        "grabcut: 400 images, 2.0 images/s, 0:03:20 in all",
    ]
    script = tmp_path / "stage.py"
    script.write_text("\n".join(f"print({line!r})" for line in lines))
    stages.run("a stage", tmp_path, script)
    shown = capsys.readouterr().out.splitlines()
    assert shown[1:-1] == [
        "a stage: Epoch(train)  [3][25/47]  eta: 0:19:03",
        f"a stage: {lines[1]}",
    ]
    assert (tmp_path / "logs/a-stage.log").read_text().splitlines() == lines


def test_a_command_that_fails_gives_the_terminal_back(demo, tmp_path):
    """The file breaks off in the middle of its annotations."""
    text = (demo / "boxes_val.json").read_text()
    (tmp_path / "broken.json").write_text(text[: text.index('"bbox"') + 20])
    tool = ROOT / "tools/dataset_converters/boxes_only.py"
    command = [sys.executable, tool, tmp_path / "broken.json", tmp_path / "out.json"]
    reader, writer = pty.openpty()
    env = os.environ | dict(TERM="xterm-256color", COLUMNS="100", OMP_NUM_THREADS="1")
    with subprocess.Popen(
        command, env=env, stdin=writer, stdout=writer, stderr=writer, close_fds=True
    ) as process:
        os.close(writer)
        sent = b""
        try:
            while chunk := os.read(reader, 65536):
                sent += chunk
        except OSError:  # how Linux says that the other end is closed
            pass
    os.close(reader)
    text = sent.decode()
    assert process.returncode == 1 and "broken.json is not valid JSON" in text
    assert "opening broken.json" in text and text.count(HIDE_CURSOR) == text.count(SHOW_CURSOR) == 1
    assert text.rindex(SHOW_CURSOR) > text.rindex("opening broken.json")
    assert not (tmp_path / "out.json").exists()
