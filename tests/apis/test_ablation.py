# SPDX-License-Identifier: Apache-2.0
import csv
import json

import pytest
from mmengine.config import Config

from mal_mmdet.apis import ablation, rebase, run_ablation
from mal_mmdet.apis.ablation import run_once
from tests.conftest import ROOT, tiny_config

ABLATIONS = sorted((ROOT / "configs/mal/ablations").glob("*.py"))
DEMO = ROOT / "configs/mal/mal_vit-demo_1xb16_demo.py"
MAIN = ROOT / "configs/mal/mal_vit-base-mae_8xb4-10e_coco.py"


def differences(one, other, path=""):
    """Paths of all that differs between two configs."""
    if isinstance(one, dict) and isinstance(other, dict):
        keys = one.keys() | other.keys()
        found = [differences(one.get(k), other.get(k), f"{path}.{k}") for k in keys]
        return set().union(*found)
    if isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        found = [differences(a, b, f"{path}.{i}") for i, (a, b) in enumerate(zip(one, other))]
        return set().union(*found)
    return set() if one == other else {path}


@pytest.mark.parametrize("path", ABLATIONS, ids=[path.stem for path in ABLATIONS])
def test_each_changes_one_thing_on_any_base(path, tmp_path):
    (tmp_path / path.name).write_text(rebase(path, DEMO))
    own = DEMO if path.stem.startswith("demo-") else MAIN
    for config, base in ((path, own), (tmp_path / path.name, DEMO)):
        cfg = Config.fromfile(config).to_dict()
        changed = differences(cfg, Config.fromfile(base).to_dict())
        changed -= {c for c in changed if c.startswith((".train_pipeline", ".test_pipeline"))}
        fields = {c.rpartition(".")[0] if "pipeline" in c else c for c in changed}
        if "encoder" in path.stem:
            assert all(field.startswith(".model.network.backbone") for field in fields)
        elif path.stem == "border-wrap":
            assert len(fields) == 2  # the same transform in training and labeling
        else:
            assert len(fields) == 1, fields


def test_a_config_with_other_bases_is_refused(tmp_path):
    (tmp_path / "two.py").write_text("_base_ = ['./a.py', './b.py']\n")
    with pytest.raises(ValueError, match=r"two.py has 0 lines such as `_base_ = "):
        rebase(tmp_path / "two.py", DEMO)
    with pytest.raises(ValueError, match="different names, got no-crf, no-crf"):
        run_ablation([ABLATIONS[0].parent / "no-crf.py"] * 2, tmp_path)


def test_the_table_holds_what_the_runs_measured(demo, tmp_path, monkeypatch):
    base = tmp_path / "base.py"
    tiny_config(demo, tmp_path / "unused").dump(base)
    changes = [path for path in ABLATIONS if path.stem in ("no-crf", "decoder-query")]
    # By colours all three find the same masks, so plain as the images are.
    options = {"train_cfg.max_epochs": 1, "model.color_weight": 0.0}
    rows = run_ablation(changes, tmp_path / "out", base, options)
    assert [row["name"] for row in rows] == ["base", "decoder-query", "no-crf"]
    assert rows[2]["description"] == "Without the CRF loss."
    assert all(0 < row["miou"] < 1 for row in rows)
    assert len({row["miou"] for row in rows}) == 3
    assert "QueryDecoder" in (tmp_path / "out/decoder-query/decoder-query.py").read_text()
    with open(tmp_path / "out/table.csv") as file:
        table = list(csv.DictReader(file))
    assert [float(line["miou"]) for line in table] == [row["miou"] for row in rows]
    text = (tmp_path / "out/table.md").read_text()
    assert f"| no-crf | Without the CRF loss. | {rows[2]['miou']:.3f} |" in text

    for row in rows:  # each run has a log of its own
        (log,) = (tmp_path / "out" / row["name"]).rglob("scalars.json")
        losses = [json.loads(line) for line in log.read_text().splitlines() if "loss" in line]
        assert len({entry["step"] for entry in losses}) == len(losses) > 0

    with pytest.raises(FileNotFoundError, match=r"the config tests on .*/boxes_no\.json"):
        key = "test_dataloader.dataset.dataset.ann_file"
        run_ablation(changes, tmp_path / "other", base, options | {key: "boxes_no.json"})
    assert not list((tmp_path / "other").rglob("*.pth"))
    voc = Config.fromfile(ROOT / "configs/mal/mal_vit-base-mae_8xb4-10e_voc.py")  # no evaluator
    voc.test_dataloader.dataset.dataset.data_root = str(tmp_path)
    voc.work_dir = str(tmp_path / "voc")
    with pytest.raises(FileNotFoundError, match=r"/annotations/boxes_\S+ which does not exist"):
        run_once(voc)

    # What is done is not done again.
    monkeypatch.setattr(ablation.RUNNERS, "build", lambda cfg: pytest.fail("ran again"))
    assert run_ablation(changes, tmp_path / "out", base, options) == rows
    with pytest.raises(ValueError, match=r"base holds a run of another config"):
        run_ablation(changes, tmp_path / "out", base, {"train_cfg.max_epochs": 2})
