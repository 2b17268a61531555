# SPDX-License-Identifier: Apache-2.0
"""Checkpoints that would run code: no tool does, unless it is told to."""

from __future__ import annotations

import collections
import os
import runpy
import sys
from argparse import Namespace
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
import torch
from huggingface_hub.errors import EntryNotFoundError
from mmdet.registry import MODELS
from mmengine.logging import HistoryBuffer
from mmengine.runner import CheckpointLoader, Runner
from mmengine.runner.checkpoint import get_torch_safe_globals

from mal_mmdet.apis import MALInferencer
from mal_mmdet.checkpoints import trusting_checkpoints
from mal_mmdet.models.released_checkpoint import load_tensors

from .conftest import ROOT, tiny_config


class Touch:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return Path.touch, (self.path,)


class Getattr:
    """An attribute that is looked up when this is unpickled, and given a state."""

    def __init__(self, owner: object, name: str, *state: object) -> None:
        self.reduced = (getattr, (owner, name), *state)

    def __reduce__(self) -> tuple:
        return self.reduced


class Buffer:
    """A history buffer with any attributes."""

    def __init__(self, attributes: object) -> None:
        self.attributes = attributes

    def __reduce__(self) -> tuple:
        return HistoryBuffer, (), self.attributes


@pytest.fixture(scope="module")
def trained(demo, tmp_path_factory):
    """Config file and checkpoint of a training of one epoch."""
    folder = tmp_path_factory.mktemp("trained")
    ema = [dict(type="EMAHook")]
    cfg = tiny_config(demo, folder, **{"train_cfg.max_epochs": 1, "custom_hooks": ema})
    cfg.dump(folder / "config.py")
    Runner.from_cfg(cfg).train()
    return folder / "config.py", folder / "epoch_1.pth"


@pytest.fixture
def hostile(trained, tmp_path):
    """The checkpoint with something in it that makes the file of the second path."""
    content = torch.load(trained[1], weights_only=False)
    torch.save(content | dict(payload=Touch(tmp_path / "made")), tmp_path / "hostile.pth")
    return tmp_path / "hostile.pth", tmp_path / "made"


def run(name: str, *arguments: object) -> None:
    sys.argv = [name, *map(str, arguments)]
    with patch.dict(os.environ, MAL_MMDET_TRACEBACK="1"):  # errors as they are raised
        runpy.run_path(str(ROOT / "tools" / name), run_name="__main__")


def train_resumed(trained, demo, file, out, trust):
    run("train.py", trained[0], "--resume", file, "--work-dir", out, *trust)


def train_loaded(trained, demo, file, out, trust):
    options = ("--cfg-options", f"load_from={file}", "train_dataloader.batch_size=8")
    run("train.py", trained[0], "--work-dir", out, *trust, *options)


def test_checkpoint(trained, demo, file, out, trust):
    run("test.py", trained[0], file, "--work-dir", out, *trust)


def label(trained, demo, file, out, trust):
    data = ("--ann-file", demo / "instances_val.json", "--img-dir", demo / "val")
    try:
        run("generate_labels.py", trained[0], file, *data, "--out", out / "x.json", *trust)
    except SystemExit as done:
        assert done.code == 0


def draw_attention(trained, demo, file, out, trust):
    data = ("--ann-file", demo / "instances_val.json", "--img-dir", demo / "val")
    options = ("--number", 1, "--layers", 1, "--out", out)
    run("visualize.py", "attention", trained[0], file, *data, *options, *trust)


def infer(trained, demo, file, out, trust):
    MALInferencer(trained[0], file, device="cpu", trust_checkpoint=bool(trust))


def initialise(trained, demo, file, out, trust, kind="Pretrained"):
    cfg = tiny_config(demo, out).model
    cfg.network.init_cfg = dict(type=kind, checkpoint=str(file))
    if kind == "Pretrained":
        cfg.network.init_cfg.prefix = "student."
    with trusting_checkpoints(bool(trust)):
        MODELS.build(cfg).init_weights()


def initialise_encoder(*arguments):
    initialise(*arguments, kind="PretrainedEncoder")


def download(trained, demo, file, out, trust):
    with pytest.MonkeyPatch.context() as patch, trusting_checkpoints(bool(trust)):
        patch.setenv("TORCH_HOME", str(out))  # where the file has been downloaded to before
        cached = out / "hub/checkpoints/hostile.pth"
        cached.parent.mkdir(parents=True, exist_ok=True)
        cached.write_bytes(file.read_bytes())
        CheckpointLoader.load_checkpoint("https://example.com/hostile.pth")


def load_from_hub(trained, demo, file, out, trust):
    def fetch(*args, filename, **kwargs):
        if filename.endswith(".safetensors"):  # which the hub would have in its place
            raise EntryNotFoundError("404")
        return str(file)

    with pytest.MonkeyPatch.context() as patch, trusting_checkpoints(bool(trust)):
        patch.setattr("timm.models._hub.hf_hub_download", fetch)
        CheckpointLoader.load_checkpoint("hf-hub:someone/vit")


test_checkpoint.__test__ = False
WAYS = [
    train_resumed,
    train_loaded,
    test_checkpoint,
    label,
    draw_attention,
    infer,
    initialise,
    initialise_encoder,
    download,
    load_from_hub,
]


@pytest.mark.parametrize("load", WAYS)
def test_code_in_a_checkpoint_runs_only_if_it_is_trusted(
    load, trained, demo, hostile, tmp_path, monkeypatch
):
    monkeypatch.setattr(sys, "argv", [])
    file, made = hostile
    out = tmp_path / "out"
    with pytest.raises(ValueError, match=r"it wants pathlib\..*--trust-checkpoint"):
        load(trained, demo, file, out, ())
    assert not made.exists()
    load(trained, demo, file, out, ("--trust-checkpoint",))
    assert made.exists()


@pytest.fixture
def program(tmp_path):
    """A config as MMEngine would run it, and the file that it makes."""
    made = tmp_path / "made"
    return f"import pathlib\npathlib.Path({str(made)!r}).touch()\n", made


def test_a_config_in_a_checkpoint_is_not_run(trained, program, tmp_path, monkeypatch):
    """MMEngine runs it to compare numbers of GPUs; the training goes on without."""
    monkeypatch.setattr(sys, "argv", [])
    text, made = program
    content = torch.load(trained[1], weights_only=False)
    content["meta"]["config"] = text
    torch.save(content, tmp_path / "old.pth")
    train_resumed(trained, None, tmp_path / "old.pth", tmp_path / "out", ())
    assert any((tmp_path / "out").iterdir())
    assert not made.exists()
    train_resumed(trained, None, tmp_path / "old.pth", tmp_path / "out", ["--trust-checkpoint"])
    assert made.exists()


@pytest.mark.parametrize("whole", [True, False])
def test_no_other_type_stands_for_a_dictionary(trained, program, tmp_path, monkeypatch, whole):
    """A record of NumPy's answers to ``in`` and ``[]`` too."""
    monkeypatch.setattr(sys, "argv", [])
    text, made = program
    kinds = [("epoch", "i8"), ("iter", "i8"), ("config", f"U{len(text)}"), ("x", "U6")]

    class Record:
        def __reduce__(self):
            record = np.array([(1, 4, text, "config")], kinds)
            return np.ones(1)[0].__reduce__()[0], (Kinds(), record.tobytes())

    class Kinds:
        def __reduce__(self):
            return np.dtype, (kinds,)

    content = torch.load(trained[1], weights_only=False)
    torch.save(Record() if whole else content | dict(meta=Record()), tmp_path / "record.pth")
    with pytest.raises(ValueError, match=r"record\.pth is no checkpoint: .* holds a (void|dict)"):
        train_resumed(trained, None, tmp_path / "record.pth", tmp_path / "out", ())
    assert not made.exists()
    if not whole:
        with pytest.raises(AttributeError, match="void"):  # after MMEngine ran it
            train_resumed(
                trained, None, tmp_path / "record.pth", tmp_path / "out", ["--trust-checkpoint"]
            )
        assert made.exists()


@pytest.mark.parametrize("metrics", [1, 2])
def test_a_checkpoint_removes_no_files_but_its_hooks(trained, demo, tmp_path, metrics):
    """It says which files are outdated; what it names outside the work dir stays."""
    home, out = tmp_path / "home", tmp_path / "out"
    (home / "sub").mkdir(parents=True)
    (home / "sub" / "x.txt").write_text("precious")
    (home / "best_x.pth").write_text("precious")
    content = torch.load(trained[1], weights_only=False)
    hub, keys = content["message_hub"], ["mask/miou", "mask/miou_large"][:metrics]
    names = ["best_ckpt"] if metrics == 1 else [f"best_ckpt_{key}" for key in keys]
    victims = [str(home / "sub"), str(home / "best_x.pth")]
    for name, victim in zip(names, victims[::-1] if metrics == 1 else victims):
        hub["runtime_info"][name], hub["resumed_keys"][name] = victim, True
    hub["runtime_info"]["keep_ckpt_ids"] = ["../../home/best_x"] * 9
    hub["resumed_keys"]["keep_ckpt_ids"] = True
    torch.save(content, tmp_path / "names.pth")
    ema = [dict(type="EMAHook")]
    cfg = tiny_config(demo, out, **{"train_cfg.max_epochs": 2, "custom_hooks": ema})
    cfg.val_cfg, cfg.val_dataloader = dict(type="ValLoop"), cfg.test_dataloader
    cfg.val_evaluator = cfg.test_evaluator
    cfg.default_hooks.checkpoint.update(save_best=keys, rule="greater", filename_tmpl="{}.pth")
    cfg.resume, cfg.load_from = True, str(tmp_path / "names.pth")
    Runner.from_cfg(cfg).train()
    assert {p.name for p in out.glob("best_*")} == {
        f"best_{key.replace('/', '_')}_2.pth" for key in keys
    }
    assert (home / "sub" / "x.txt").exists() and (home / "best_x.pth").exists()


def test_an_honest_checkpoint_is_read_whole(trained):
    found = CheckpointLoader.load_checkpoint(str(trained[1]))
    expected = torch.load(trained[1], weights_only=False)
    assert found.keys() == expected.keys() > {"optimizer", "ema_state_dict", "param_schedulers"}
    logs = found["message_hub"]["log_scalars"]["train/loss"]
    assert logs.statistics("mean") == np.mean(logs.data[0]) > 0
    assert all(
        torch.equal(found["state_dict"][key], v) for key, v in expected["state_dict"].items()
    )


def test_arguments_and_numbers_that_others_save_are_read(tmp_path):
    numbers = [np.float32(0.5), np.arange(3), np.array([True]), np.int64(7)]
    content = dict(args=Namespace(lr=0.1, data="x"), numbers=numbers)
    torch.save(content, tmp_path / "x.pth")
    found = CheckpointLoader.load_checkpoint(str(tmp_path / "x.pth"))
    assert found["args"] == content["args"] and found["numbers"][0] == np.float32(0.5)
    assert [np.array(n).dtype for n in found["numbers"]] == [np.array(n).dtype for n in numbers]


def test_getattr_is_no_way_out(tmp_path):
    # Attribute after attribute, from a history buffer to os.system, which it calls as its own.
    made, command = tmp_path / "made", f"touch {tmp_path / 'made'}"
    module = Buffer(Getattr(HistoryBuffer.mean, "__globals__"))
    modules = Buffer(Getattr(Getattr(Getattr(module, "warnings"), "sys"), "modules"))
    update = Buffer(dict(update=Getattr(Getattr(modules, "os"), "system")))
    methods = dict(_set_default_statistics=collections.OrderedDict, _statistics_methods=update)
    trick = Getattr(Buffer(dict(x=Buffer(methods))), "x", dict(statistics_methods=command))
    torch.save(trick, tmp_path / "trick.pth")
    with pytest.raises(ValueError, match="it wants getattr of '__globals__'"):
        CheckpointLoader.load_checkpoint(str(tmp_path / "trick.pth"))
    assert not made.exists()
    # What MMEngine allows by itself is not safe.
    with torch.serialization.safe_globals(get_torch_safe_globals()):
        torch.load(tmp_path / "trick.pth", weights_only=True)
    assert made.exists()


def test_a_file_that_is_no_checkpoint(tmp_path):
    (tmp_path / "page.pth").write_text("<html>404</html>")
    with pytest.raises(ValueError, match=r"page\.pth is no checkpoint .*Unsupported operand"):
        CheckpointLoader.load_checkpoint(str(tmp_path / "page.pth"))


@pytest.mark.parametrize("share", [0.0, 0.5, 0.9])
@pytest.mark.parametrize("zipped", [True, False])
def test_half_a_checkpoint_says_so(tmp_path, share, zipped):
    path = tmp_path / "half.pth"
    content = dict(state_dict=dict(weight=torch.ones(1000)))
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(ValueError, match=r"half\.pth is no .*checkpoint"):
        CheckpointLoader.load_checkpoint(str(path))


@pytest.mark.parametrize("zipped", [True, False])
def test_a_damaged_checkpoint_is_named(tmp_path, zipped):
    """Whatever byte is wrong, and whatever PyTorch makes of it; most are found by no reader."""
    path, found = tmp_path / "wrong.pth", []
    torch.save(
        dict(w=torch.ones(3), n=np.float32(1), text="é"),
        path,
        _use_new_zipfile_serialization=zipped,
    )
    whole = path.read_bytes()
    for place in range(0, len(whole), 3):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0x84]) + whole[place + 1 :])
        try:
            CheckpointLoader.load_checkpoint(str(path))
        except ValueError as error:
            assert str(path) in str(error)
            found.append(place)
    assert len(found) > 20


def test_what_others_have_allowed_stays_allowed(trained):
    before = set(torch.serialization.get_safe_globals())
    CheckpointLoader.load_checkpoint(str(trained[1]))
    assert set(torch.serialization.get_safe_globals()) == before


def test_the_converter_skips_code(tmp_path):
    made = tmp_path / "made"
    torch.save(dict(state_dict={}, payload=Touch(made)), tmp_path / "x.pth")
    assert load_tensors(tmp_path / "x.pth")["state_dict"] == {}
    monkey = [str(tmp_path / "x.pth"), str(tmp_path / "y.pth")]
    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit, match="converted"):
        patch.setattr(sys, "argv", [])
        run("model_converters/mal_released_to_mmdet.py", *monkey)
    assert not made.exists()
    torch.load(tmp_path / "x.pth", weights_only=False)
    assert made.exists()
