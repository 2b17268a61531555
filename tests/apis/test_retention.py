# SPDX-License-Identifier: Apache-2.0
import json
import runpy

import cv2
import numpy as np
import pytest
import torch

from mal_mmdet.apis import Row, ablation, measure_retention, retention
from mal_mmdet.apis.retention import draw_retention, retention_table, summarize
from mal_mmdet.labeling import read_coco, write_json
from mal_mmdet.labeling.baselines import fill_boxes
from tests.conftest import ROOT

MASK_RCNN = str(ROOT / "configs/mask_rcnn/mask-rcnn_demo-mal.py")
FASTER_RCNN = str(ROOT / "configs/faster_rcnn/faster-rcnn_demo.py")
OPTIONS = {
    "train_cfg.max_epochs": 1,
    "train_dataloader.dataset.pipeline.2.scale": (64, 64),
    "test_dataloader.dataset.pipeline.1.scale": (64, 64),
    "model.test_cfg.rcnn.score_thr": 0.0,
    "log_level": "WARNING",
}


def test_figures_over_seeds_by_hand():
    human = [dict(mask_ap=0.40, box_ap=0.5), dict(mask_ap=0.50, box_ap=0.6)]
    mal = [dict(mask_ap=0.38, box_ap=0.5), dict(mask_ap=0.49, box_ap=0.7)]
    row = summarize(Row("MAL", "a.py", "mal.json"), mal, human)
    assert row["mean"] == pytest.approx(dict(mask_ap=0.435, box_ap=0.6, retention=0.965))
    half = 0.5**0.5  # the sample's deviation of two values is their distance times this
    assert row["std"] == pytest.approx(
        dict(mask_ap=0.11 * half, box_ap=0.2 * half, retention=0.03 * half)
    )
    assert row["runs"] == mal


def test_fewer_seeds_boxes_alone_and_an_ap_of_zero():
    human = [dict(mask_ap=0.4), dict(mask_ap=0.5)]
    first = summarize(Row("MAL", "a.py", "mal.json"), [dict(mask_ap=0.2)], human)
    assert first["mean"]["retention"] == pytest.approx(0.5) and first["std"] == {}
    boxes = summarize(Row("boxes", "a.py", "b.json"), [dict(box_ap=0.2)], human)
    assert boxes["mean"] == dict(box_ap=0.2)
    zero = summarize(Row("MAL", "a.py", "mal.json"), [dict(mask_ap=0.2)], [dict(mask_ap=0.0)])
    assert "retention" not in zero["mean"]
    assert summarize(Row("MAL", "a.py", "mal.json"), [], human)["mean"] == {}


def test_the_table_and_the_chart(tmp_path):
    runs = [dict(mask_ap=0.40, mask_ap_small=np.nan, box_ap=0.5), dict(mask_ap=0.5, box_ap=0.5)]
    runs[1]["mask_ap_small"] = np.nan
    table = [
        summarize(Row("human masks", "a.py", "h.json"), runs, runs),
        summarize(Row("boxes alone", "b.py", "b.json"), [dict(box_ap=0.25)], runs),
    ]
    lines = retention_table(table).splitlines()
    assert len({line.count("|") for line in lines}) == 1
    assert lines[2] == "| human masks | 45.0 ± 7.1 |  |  |  |  |  |  | 50.0 ± 0.0 | 1.000 ± 0.000 |"
    assert lines[3] == "| boxes alone |  |  |  |  |  |  |  | 25.0 |  |"
    draw_retention(table, tmp_path / "chart.png")
    chart = cv2.imread(str(tmp_path / "chart.png"))
    assert chart.shape[0] > 200 and len(np.unique(chart.reshape(-1, 3), axis=0)) > 3
    assert [path.name for path in tmp_path.iterdir()] == ["chart.png"]


@pytest.fixture
def files(demo, tmp_path):
    """Human masks, filled boxes in place of MAL's masks, boxes alone, and the folders."""
    fill_boxes(demo / "boxes_train.json", tmp_path / "mal.json")
    rows = [
        Row("human masks", MASK_RCNN, demo / "instances_train.json"),
        Row("MAL", MASK_RCNN, tmp_path / "mal.json"),
        Row("Faster R-CNN", FASTER_RCNN, demo / "boxes_train.json"),
    ]
    options = dict(img_dir=demo / "train", val_img_dir=demo / "val", options=OPTIONS)
    return rows, demo / "instances_val.json", tmp_path / "out", options


def with_other_ids(coco):
    """As evaluators would not take them: 0 is no annotation to them, and texts are no numbers."""
    for i, ann in enumerate(coco["annotations"]):
        ann.update(id=i and f"box {i}", image_id=f"image {ann['image_id']}")
    for image in coco["images"]:
        image["id"] = f"image {image['id']}"
    return coco


def test_rows_are_trained_measured_and_not_trained_again(files, monkeypatch):
    rows, demo_val, out, options = files
    val = out.parent / "val.json"
    write_json(val, with_other_ids(read_coco(demo_val)))
    table = measure_retention(rows, val, out, seeds=1, **options)
    assert [row["name"] for row in table] == ["human masks", "MAL", "Faster R-CNN"]
    assert all(0 <= row["mean"]["mask_ap50"] <= 1 for row in table[:2])
    assert all((out / row.folder / "seed0/predictions.bbox.json").exists() for row in rows)
    assert table[2]["mean"].keys() >= {"box_ap", "minutes"}
    assert not any(key.startswith(("mask", "boundary")) for key in table[2]["mean"])
    assert json.loads((out / "retention.json").read_text())[1]["labels"].endswith("mal.json")
    assert (out / "retention.md").read_text() == retention_table(table)
    assert (out / "retention.png").stat().st_size > 1000
    seen = json.loads((out / "mal/seed0/config.json").read_text())
    assert seen["train_dataloader"]["dataset"]["ann_file"] == str(rows[1].labels)
    assert seen["randomness"]["seed"] == 0 and seen["val_dataloader"] is None

    monkeypatch.setattr(retention, "run_once", _only_done(retention.run_once))
    monkeypatch.chdir(out.parent)
    again = measure_retention(rows, val, "out", seeds=1, **options)
    assert repr(again) == repr(table)

    # Other labels under the same name.
    labels = read_coco(rows[1].labels)
    labels["annotations"][0]["segmentation"] = [[0, 0, 9, 0, 9, 9]]
    write_json(rows[1].labels, labels)
    with pytest.raises(ValueError, match="seed0 holds a run of another config"):
        measure_retention(rows, val, out, seeds=1, **options)


def test_other_boxes_are_no_comparison_and_fewer_are_told(files, monkeypatch, caplog):
    rows, val, out, options = files
    monkeypatch.setattr(retention, "run_once", lambda run: 1 / 0)
    labels = read_coco(rows[1].labels)
    kept = {ann["image_id"]: ann for ann in labels["annotations"]}.values()
    write_json(rows[1].labels, labels | dict(annotations=[*kept]))
    said = []
    monkeypatch.setattr(retention, "print_log", lambda text, **kwargs: said.append(text))
    with pytest.raises(ZeroDivisionError):
        measure_retention(rows, val, out, seeds=1, **options)
    assert len(said) == 1 and f"mal.json has {len(kept)} boxes and" in said[0]
    labels["annotations"][0]["bbox"][2] += 1
    write_json(rows[1].labels, labels)
    with pytest.raises(ValueError, match=r"mal.json has other boxes than .*instances_train.json"):
        measure_retention(rows, val, out, seeds=1, **options)


def test_an_annotation_without_a_box_is_named(files):
    rows, val, out, options = files
    labels = read_coco(rows[1].labels)
    del labels["annotations"][1]["bbox"]
    write_json(rows[1].labels, labels)
    with pytest.raises(ValueError, match=r"annotations\[1\] of .*mal.json: has no 'bbox'"):
        measure_retention(rows, val, out, seeds=1, **options)
    with pytest.raises(ValueError, match=r"annotations\[1\] of .*mal.json: has no 'bbox'"):
        fill_boxes(rows[1].labels, out / "filled.json")


def test_the_tool_assembles_the_rows(files, monkeypatch, capsys):
    rows, val, out, options = files
    human, mal, boxes = rows
    seen = []

    def measure(*args, **kwargs):
        seen.append((args, kwargs))
        out.mkdir(exist_ok=True)
        (out / "retention.md").write_text("| a |\n| --- |\n| b |\n")

    monkeypatch.setattr("mal_mmdet.apis.measure_retention", measure)
    arguments = [MASK_RCNN, "--human", human.labels, "--mal", mal.labels, "--val", val, "--boxes"]
    arguments += ["--row", "Faster R-CNN", FASTER_RCNN, boxes.labels, "--seeds", 2]
    arguments += ["--img-dir", options["img_dir"], "--work-dir", out]
    monkeypatch.setattr("sys.argv", ["retention.py", *map(str, arguments)])
    runpy.run_path(str(ROOT / "tools/retention.py"), run_name="__main__")
    (((found, found_val, work_dir), found_options),) = seen
    filled = out / "instances_filled_boxes.json"
    assert [(row.name, row.config, str(row.labels)) for row in found] == [
        ("human masks", MASK_RCNN, str(human.labels)),
        ("MAL", MASK_RCNN, str(mal.labels)),
        ("filled boxes", MASK_RCNN, str(filled)),
        ("Faster R-CNN", FASTER_RCNN, str(boxes.labels)),
    ]
    assert len(read_coco(filled)["annotations"]) == len(read_coco(mal.labels)["annotations"])
    assert (found_val, work_dir) == (str(val), out)
    assert found_options["seeds"] == 2 and found_options["img_dir"] == str(options["img_dir"])
    assert "retention.png" in capsys.readouterr().out


def test_each_seed_is_a_training_of_its_own(files, monkeypatch):
    rows, val, out, options = files
    seen = []

    def run(cfg):
        assert cfg.test_evaluator.outfile_prefix == f"{cfg.work_dir}/predictions"
        seen.append((cfg.work_dir, cfg.randomness.seed, str(cfg.train_dataloader.dataset.ann_file)))
        return dict(minutes=1.0)

    monkeypatch.setattr(retention, "run_once", run)
    monkeypatch.setattr(retention, "measure", lambda val, folder: dict(mask_ap=0.1 * len(seen)))
    table = measure_retention(rows[:2], val, out, seeds=2, **options)
    folders = [f"{row}/seed{seed}" for seed in (0, 1) for row in ("human-masks", "mal")]
    assert [work_dir for work_dir, *_ in seen] == [str(out / folder) for folder in folders]
    assert [seed for _, seed, _ in seen] == [0, 0, 1, 1]
    assert [labels for *_, labels in seen] == [str(row.labels) for row in rows[:2]] * 2
    assert table[1]["mean"]["retention"] == pytest.approx((2 / 1 + 4 / 3) / 2)


def test_an_interrupted_training_goes_on_where_it_was(files, monkeypatch):
    """And not from the weights that the config starts from."""
    rows, val, out, options = files
    folder = out / "human-masks/seed0"
    folder.mkdir(parents=True)
    torch.save(dict(state_dict={}), folder / "epoch_1.pth")
    (folder / "last_checkpoint").write_text(str(folder / "epoch_1.pth"))

    def started(cfg):
        assert cfg.resume and cfg.load_from == str(folder / "epoch_1.pth")
        raise InterruptedError

    monkeypatch.setattr(ablation.RUNNERS, "build", started)
    options["options"] = OPTIONS | {"load_from": "pretrained.pth"}
    with pytest.raises(InterruptedError):
        measure_retention(rows[:1], val, out, seeds=1, **options)


def _only_done(run_once):
    def run(cfg):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(ablation.RUNNERS, "build", lambda cfg: pytest.fail("ran again"))
            return run_once(cfg)

    return run


def test_unequal_comparisons_are_refused_before_any_training(files, monkeypatch):
    rows, val, out, options = files
    monkeypatch.setattr(retention, "run_once", lambda cfg: pytest.fail("trained"))
    twins = [rows[0], Row("Human masks!", MASK_RCNN, rows[1].labels)]
    with pytest.raises(ValueError, match="rows must have different names"):
        measure_retention(twins, val, out, **options)
    labels = read_coco(rows[1].labels)
    labels["images"].pop()
    images = {image["id"] for image in labels["images"]}
    labels["annotations"] = [a for a in labels["annotations"] if a["image_id"] in images]
    write_json(rows[1].labels, labels)
    with pytest.raises(ValueError, match=r"mal.json has other images than .*\(7 of 7 .*8 of 8"):
        measure_retention(rows[:2], val, out, **options)
    with pytest.raises(ValueError, match=r"no annotation of .* has a mask"):
        unlabeled = Row("MAL", MASK_RCNN, val.parent / "boxes_train.json")
        measure_retention([rows[0], unlabeled], val, out, **options)
    write_json(rows[1].labels, dict(labels, images=labels["images"][::-1]))
    with pytest.raises(ValueError, match="in another order"):
        measure_retention(rows[1:2] + rows[:1], val, out, **options)
    truth = read_coco(val)
    del truth["annotations"][3]["iscrowd"]
    write_json(out.parent / "val.json", truth)
    with pytest.raises(ValueError, match=r"annotation .* of .*val.json has no 'iscrowd'"):
        measure_retention(rows[:1], out.parent / "val.json", out, **options)
    truth = read_coco(val)
    truth["annotations"][3]["source"] = "mal"
    write_json(out.parent / "val.json", truth)
    with pytest.raises(ValueError, match=r"annotation .* of .*val.json is a mask of MAL's"):
        measure_retention(rows[:1], out.parent / "val.json", out, **options)
    metric = dict(type="CocoOccludedSeparatedMetric", ann_file="x", metric=["segm"])
    with pytest.raises(ValueError, match="tested by CocoOccludedSeparatedMetric"):
        replaced = OPTIONS | {"test_evaluator": metric}
        measure_retention(rows[:1], val, out, **options | dict(options=replaced))
    assert not out.exists()

    # Even of the last row's last seed.
    (out / "faster-r-cnn/seed2").mkdir(parents=True)
    (out / "faster-r-cnn/seed2/config.json").write_text("{}")
    with pytest.raises(ValueError, match=r"another config \(.*train_dataloader.* differ from"):
        measure_retention([rows[0], rows[2]], val, out, **options)
