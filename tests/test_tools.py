# SPDX-License-Identifier: Apache-2.0
"""The command-line tools, as a user runs them, but for a new process where one is not needed.

Importing everything takes longer than most of what they do here.
"""

import importlib
import io
import json
import os
import re
import runpy
import shutil
import subprocess
import sys
import time
import traceback
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from mmdet.registry import DATASETS, MODELS
from mmengine.config import Config
from PIL import Image
from pycocotools import mask as mask_utils
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from mal_mmdet.datasets.demo_dataset import SIZE
from mal_mmdet.labeling import encode_mask, read_coco, write_json
from tests.conftest import ROOT, forget_runners, free_port, tiny_config
from tests.doc_blocks import arguments
from tests.tiny_sets import config_path, make_voc


@dataclass
class Done:
    stdout: str
    stderr: str


def run(script, *args, code=0):
    """Runs a tool in this process; an uncaught error is printed and ends it with 1."""
    stdout, stderr, found = io.StringIO(), io.StringIO(), 0
    path = ROOT / script
    forget_runners()
    with arguments(path, [*map(str, args)]), redirect_stdout(stdout), redirect_stderr(stderr):
        try:
            runpy.run_path(str(path), run_name="__main__")
        except SystemExit as end:
            found = end.code or 0
            if isinstance(found, str):
                print(found, file=stderr)
                found = 1
        except Exception:
            traceback.print_exc()
            found = 1
    done = Done(stdout.getvalue(), stderr.getvalue())
    assert found == code, f"{done.stdout[-2000:]}\n{done.stderr[-3000:]}"
    return done


@pytest.fixture(scope="module")
def trained(demo, tmp_path_factory):
    """Config and checkpoint of a tiny network with random weights."""
    folder = tmp_path_factory.mktemp("trained")
    # Untrained probabilities lie around 0.5; a threshold there shows every change of them.
    options = {"log_level": "INFO", "model.thresholds": 0.5}
    cfg = tiny_config(demo, folder / "work", **options)
    cfg.dump(folder / "config.py")
    torch.manual_seed(0)
    model = MODELS.build(cfg.model)
    model.init_weights()
    with torch.no_grad():
        for p in model.teacher.parameters():
            p.mul_(1.2)
    torch.save(dict(state_dict=model.state_dict(), meta={}), folder / "mal.pth")
    return folder / "config.py", folder / "mal.pth"


def label(trained, ann_file, img_dir, out, *options, code=0):
    files = ["--ann-file", ann_file, "--img-dir", img_dir, "--out", out]
    return run("tools/generate_labels.py", *trained, *files, *options, code=code)


def stock_dataset(ann_file, img_dir, classes, **loading):
    """mmdet's own CocoDataset with its own mask loading."""
    return DATASETS.build(
        dict(
            type="CocoDataset",
            ann_file=str(ann_file),
            data_prefix=dict(img=str(img_dir)),
            metainfo=dict(classes=classes),
            test_mode=True,
            pipeline=[
                dict(type="LoadImageFromFile"),
                dict(type="LoadAnnotations", with_bbox=True, with_mask=True, **loading),
                dict(type="PackDetInputs"),
            ],
        )
    )


def test_labels_keep_the_file_and_load_everywhere(trained, demo, tmp_path, monkeypatch):
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1000000000")
    boxes = read_coco(demo / "boxes_val.json")
    boxes["licenses"] = [dict(id=1, name="none")]
    boxes["annotations"][0]["note"] = "kept: ünïcode"
    boxes["annotations"].reverse()
    write_json(tmp_path / "boxes.json", boxes)
    out = tmp_path / "labels.json"
    done = label(trained, tmp_path / "boxes.json", demo / "val", out)
    assert f"labels: {out}" in done.stdout and "boxes/s" in done.stdout

    labels = read_coco(out)
    assert labels["info"].pop("mal_mmdet")["date"] == "2001-09-09"
    assert labels["info"] == boxes.get("info", {})
    assert {k: v for k, v in labels.items() if k not in ("annotations", "info")} == {
        k: v for k, v in boxes.items() if k not in ("annotations", "info")
    }
    for before, after in zip(boxes["annotations"], labels["annotations"], strict=True):
        rle = after.pop("segmentation")
        assert after.pop("source") == "mal" and 0 <= after.pop("mask_quality") <= 1
        assert after.pop("area") == mask_utils.area(rle) > 0
        before.pop("area")
        assert before == after and list(before) == list(after)
        mask = mask_utils.decode(rle)
        x, y, w, h = (int(v) for v in before["bbox"])
        assert mask.sum() == mask[y : y + h, x : x + w].sum()  # nothing outside the box
    report = json.loads((tmp_path / "labels.json.report.json").read_text())
    assert report == dict(labeled=len(boxes["annotations"]), failed=[], low_quality=0)

    coco = COCO(str(out))
    classes = tuple(c["name"] for c in boxes["categories"])
    dataset = stock_dataset(out, demo / "val", classes)
    seen = 0
    for i in range(len(dataset)):
        instances = dataset[i]["data_samples"].gt_instances
        anns = coco.imgToAnns[dataset.get_data_info(i)["img_id"]]
        masks = np.stack([coco.annToMask(ann) for ann in anns])
        np.testing.assert_array_equal(instances.masks.to_ndarray(), masks)
        seen += len(anns)
    assert seen == len(boxes["annotations"])


def test_label_options_change_the_labels(trained, demo, tmp_path):
    """Every option reaches the model; the same call gives the same bytes."""
    files = {}
    for name, options in {
        "plain": [],
        "again": [],
        "teacher": ["--source", "teacher"],
        "both": ["--source", "both"],
        "flip": ["--flip"],
        "no-refine": ["--no-refine"],
        "threshold": ["--thresholds", "0.52"],
        "three": ["--thresholds", "0.5", "0.5", "0.52"],
        "margins": ["--margins", "0.3", "0.5"],
    }.items():
        out = tmp_path / f"{name}.json"
        label(trained, demo / "boxes_val.json", demo / "val", out, *options)
        files[name] = json.dumps(read_coco(out)["annotations"])
    assert (tmp_path / "plain.json").read_bytes() == (tmp_path / "again.json").read_bytes()
    assert len({files[k] for k in files if k not in ("again", "three")}) == 7
    # Some boxes of the demo data are large.
    assert files["three"] != files["plain"]


def test_polygons_for_detectors_that_ignore_rle(trained, demo, tmp_path):
    """As stock loading with ``poly2mask=False`` sees the two formats; the crowd is RLE in both."""
    boxes = read_coco(demo / "boxes_val.json")
    crowd = boxes["annotations"][0] | dict(id=9000, iscrowd=1)
    boxes["annotations"].append(crowd)
    write_json(tmp_path / "boxes.json", boxes)
    classes = tuple(c["name"] for c in boxes["categories"])
    found, files = {}, {}
    for name in ("rle", "polygon"):
        out = tmp_path / f"{name}.json"
        label(trained, tmp_path / "boxes.json", demo / "val", out, "--mask-format", name)
        files[name] = read_coco(out)
        dataset = stock_dataset(out, demo / "val", classes, poly2mask=False)
        samples = [dataset[i]["data_samples"] for i in range(len(dataset))]
        found[name] = sum(len(sample.gt_instances) for sample in samples)
    assert found == dict(rle=0, polygon=len(boxes["annotations"]) - 1)
    for rle, polygon in zip(*(file["annotations"] for file in files.values()), strict=True):
        one, other = rle.pop("segmentation"), polygon.pop("segmentation")
        assert rle == polygon
        if rle["iscrowd"]:
            assert one == other
            continue
        other = mask_utils.merge(mask_utils.frPyObjects(other, SIZE, SIZE))
        assert mask_utils.iou([one], [other], [0])[0, 0] >= 0.98
    for sample in samples:  # of the polygons, as a detector's pipeline resizes them
        masks = sample.gt_instances.masks
        resized = masks.resize((2 * SIZE, 2 * SIZE)).to_ndarray()
        assert (resized.sum((1, 2)) > 3.5 * masks.to_ndarray().sum((1, 2))).all()
    done = label(
        trained,
        tmp_path / "boxes.json",
        demo / "val",
        tmp_path / "no.json",
        *["--boxes", tmp_path / "rle.json", "--mask-format", "polygon"],
        code=2,
    )
    assert "--boxes writes a results file, whose masks are RLE" in done.stderr


def test_two_thresholds_are_refused(trained, demo, tmp_path):
    options = ["--thresholds", "0.1", "0.2"]
    args = demo / "boxes_val.json", demo / "val", tmp_path / "out.json"
    assert "one or three numbers, got 2" in label(trained, *args, *options, code=2).stderr


def test_bad_input_is_reported_and_the_rest_labeled(trained, demo, tmp_path):
    """Every kind of bad annotation at once, two bad images, and a crowd."""
    boxes = read_coco(demo / "boxes_train.json")
    template = dict(boxes["annotations"][0])
    images = tmp_path / "images"
    images.mkdir()
    for path in (demo / "train").iterdir():
        (images / path.name).write_bytes(path.read_bytes())
    (images / "00002.jpg").unlink()
    (images / "00003.jpg").write_bytes(b"\xff\xd8 cut off")
    lost = [a["id"] for a in boxes["annotations"] if a["image_id"] in (2, 3)]
    good = [a["id"] for a in boxes["annotations"] if a["image_id"] not in (2, 3)]
    bad = {
        9001: dict(bbox=[10, 10, 0, 10]),
        9002: dict(bbox=[10, 10, -5, 10]),
        9003: dict(bbox=[10, float("nan"), 5, 10]),
        9004: dict(bbox=[500, 500, 5, 10]),
        9005: dict(image_id=777),
        9006: dict(category_id=55),
    }
    for ann_id, change in bad.items():
        boxes["annotations"].append({**template, "id": ann_id, **change})
    without_box = {k: v for k, v in template.items() if k not in ("bbox", "area")}
    boxes["annotations"].append({**without_box, "id": 9007})
    crowd_boxes = [5.0, 6.0, 50.0, 40.0], [0.0, 0.0, 30.0, 30.0]
    old_mask = dict(size=[SIZE, SIZE], counts=[0, 900, SIZE * SIZE - 900])
    boxes["annotations"] += [
        {**without_box, "id": 9100, "bbox": crowd_boxes[0], "iscrowd": 1},
        {**template, "id": 9101, "bbox": crowd_boxes[1], "iscrowd": 1, "segmentation": old_mask},
    ]
    tiny = {**template, "id": 9200, "bbox": [20.3, 20.6, 0.2, 1.1]}
    over_the_edge = {**template, "id": 9201, "bbox": [SIZE - 20.0, -20.0, 60.0, 60.0]}
    boxes["annotations"] += [tiny, over_the_edge]
    write_json(tmp_path / "boxes.json", boxes)

    out = tmp_path / "labels.json"
    done = label(trained, tmp_path / "boxes.json", images, out, code=3)
    expected = set(bad) | {9007} | set(lost)
    assert f"{len(expected)} annotations could not be labeled" in done.stdout

    report = json.loads((tmp_path / "labels.json.report.json").read_text())
    problems = {entry["id"]: entry["problem"] for entry in report["failed"]}
    assert set(problems) == expected
    for ann_id, words in {
        9001: "empty",
        9002: "empty",
        9003: "NaN",
        9004: "outside",
        9005: "777 is not in 'images'",
        9006: "55 is not in 'categories'",
        9007: "no 'bbox'",
        lost[0]: "00002.jpg cannot be read",
        lost[-1]: "00003.jpg cannot be read",
    }.items():
        assert words in problems[ann_id], ann_id
    assert all(e["annotation"]["id"] == e["id"] for e in report["failed"])

    labels = {a["id"]: a for a in read_coco(out)["annotations"]}
    assert list(labels) == [*good, 9100, 9101, 9200, 9201]
    assert all(mask_utils.area(labels[i]["segmentation"]) > 0 for i in (*good, 9200, 9201))
    assert mask_utils.toBbox(labels[9100]["segmentation"]).tolist() == crowd_boxes[0]
    assert labels[9101]["segmentation"] == old_mask

    # Stock loading takes the crowds as instances to ignore.
    classes = tuple(c["name"] for c in boxes["categories"])
    first = stock_dataset(out, images, classes)[0]["data_samples"]
    assert len(first.ignored_instances) == 2 and first.ignored_instances.masks.masks.any()


def test_boxes_of_a_detector_are_labeled_and_evaluated(trained, demo, tmp_path):
    """The detector found every object, one of them twice, and one box it cannot have."""
    truth = read_coco(demo / "instances_val.json")
    detections = [
        dict(image_id=a["image_id"], category_id=a["category_id"], bbox=a["bbox"], score=0.9)
        for a in truth["annotations"]
    ]
    detections.append(detections[0] | dict(score=0.25, note="kept", id=77))
    outside = detections[0] | dict(bbox=[SIZE + 5.0, 0.0, 9.0, 9.0])
    write_json(tmp_path / "results.bbox.json", [*detections, outside])
    out = tmp_path / "results.segm.json"
    boxes = ["--boxes", tmp_path / "results.bbox.json"]
    label(trained, demo / "boxes_val.json", demo / "val", out, *boxes, code=3)
    labels = json.loads(out.read_text())
    masks = [entry.pop("segmentation") for entry in labels]
    assert all(0 <= entry.pop("mask_quality") <= 1 for entry in labels)
    assert labels == detections
    assert masks[0] == masks[-1]
    report = json.loads((tmp_path / "results.segm.json.report.json").read_text())
    assert [(f["index"], "outside" in f["problem"]) for f in report["failed"]] == [
        (len(detections), True)
    ]

    # The same figure as pycocotools makes of the file.
    done = run("tools/test.py", *trained, *boxes, "--work-dir", tmp_path / "test")
    (figures,) = (tmp_path / "test").glob("*/*.json")
    coco = COCO(str(demo / "instances_val.json"))
    evaluation = COCOeval(coco, coco.loadRes(str(out)), "segm")
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    found = json.loads(figures.read_text())
    assert found["coco/segm_mAP_50"] == pytest.approx(evaluation.stats[1], abs=1e-3)
    assert evaluation.stats[1] > 0, done.stdout[-500:]


def test_results_that_are_no_list_are_refused(trained, demo, tmp_path):
    args = trained, demo / "boxes_val.json", demo / "val", tmp_path / "out.json"
    done = label(*args, "--boxes", demo / "boxes_val.json", code=1)
    assert "is no COCO results file: expected a list of objects" in done.stderr


def test_detections_in_unreadable_images_and_no_detections(trained, demo, tmp_path):
    truth = read_coco(demo / "instances_val.json")
    keys = ("image_id", "category_id", "bbox")
    found = [{key: a[key] for key in keys} | dict(score=0.5) for a in truth["annotations"]]
    write_json(tmp_path / "found.json", found)
    images = tmp_path / "images"
    images.mkdir()
    for path in sorted((demo / "val").iterdir())[1:]:
        (images / path.name).write_bytes(path.read_bytes())
    boxes = ["--boxes", tmp_path / "found.json", "--work-dir", tmp_path / "test"]
    prefix = f"test_dataloader.dataset.dataset.data_prefix.img={images}"
    run("tools/test.py", *trained, *boxes, "--cfg-options", prefix)
    (figures,) = (tmp_path / "test").glob("*/*.json")
    assert "coco/segm_mAP" in json.loads(figures.read_text())
    write_json(tmp_path / "found.json", [])
    done = run("tools/test.py", *trained, *boxes, code=1)
    assert "nothing to test" in done.stderr


def test_a_checkpoint_of_another_network_is_refused(trained, demo, tmp_path):
    state = torch.load(trained[1])["state_dict"]
    state = {k: v for k, v in state.items() if "instance_head" not in k}
    torch.save(dict(state_dict=state), tmp_path / "other.pth")
    out = tmp_path / "out.json"
    args = (trained[0], tmp_path / "other.pth"), demo / "boxes_val.json", demo / "val", out
    done = label(*args, code=1)
    assert "other.pth is not a checkpoint of the config's network" in done.stderr
    assert "student.decoder.instance_head.0.weight" in done.stderr and not out.exists()


def test_testing_without_a_checkpoint_starts_from_the_configs_weights(trained, tmp_path):
    """The pretrained encoder's clustering score, also in a distributed test."""
    state = torch.load(trained[1])["state_dict"]
    encoder = {k: v for k, v in state.items() if k.startswith("student.backbone.")}
    torch.save({k: 3 * v for k, v in encoder.items()}, tmp_path / "encoder.pth")
    torch.save(dict(state_dict=state | torch.load(tmp_path / "encoder.pth")), tmp_path / "mal.pth")
    options = ["model.return_features=True", "test_evaluator.type=ClusteringScoreMetric"]
    start = f"model.network.init_cfg.checkpoint={tmp_path / 'encoder.pth'}"
    options += ["model.network.init_cfg.type=PretrainedEncoder", start]
    options = ["--cfg-options", *options]
    scores = []
    for i, checkpoint in enumerate(([tmp_path / "mal.pth"], [], [])):
        files = [trained[0], *checkpoint, "--work-dir", tmp_path / f"{i}"]
        if i < 2:
            run("tools/test.py", *files, *options)
        else:  # it starts a process group
            command = [sys.executable, ROOT / "tools/test.py", *files, "--launcher", "pytorch"]
            env = os.environ | dict(RANK="0", WORLD_SIZE="1", MASTER_ADDR="localhost")
            env |= dict(MASTER_PORT=free_port(), CUDA_VISIBLE_DEVICES="", OMP_NUM_THREADS="1")
            command = [*map(str, command), *options]
            done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=600)
            assert done.returncode == 0, done.stderr[-2000:]
        (figures,) = (tmp_path / f"{i}").glob("*/*.json")
        scores.append(json.loads(figures.read_text())["clustering/score"])
    assert 0 < scores[0] < 4 and scores[0] == scores[1] == scores[2]


def test_an_image_folder_that_does_not_exist(trained, demo, tmp_path):
    done = label(trained, demo / "boxes_val.json", tmp_path / "nowhere", tmp_path / "o", code=1)
    assert f"there is no folder {tmp_path / 'nowhere'} of the images" in done.stderr
    assert not list(tmp_path.iterdir())


def test_a_folder_without_the_images(trained, demo, tmp_path):
    out, empty = tmp_path / "labels.json", tmp_path / "empty"
    empty.mkdir()
    done = label(trained, demo / "boxes_val.json", empty, out, code=1)
    assert "none of the 4 images" in done.stderr and not out.exists()
    shutil.copy(demo / "val/00002.jpg", empty)
    done = label(trained, demo / "boxes_val.json", empty, out, code=3)
    assert "some boxes cannot be labeled, the first: image" in done.stdout
    report = json.loads((tmp_path / "labels.json.report.json").read_text())
    assert report["labeled"] == len(read_coco(out)["annotations"]) > 0
    assert {failed["annotation"]["image_id"] for failed in report["failed"]} == {1, 3, 4}


def test_nothing_that_is_read_is_written_over(trained, demo, tmp_path):
    boxes, human = tmp_path / "boxes.json", tmp_path / "human.json"
    shutil.copy(demo / "boxes_val.json", boxes)
    shutil.copy(demo / "instances_val.json", human)
    before = boxes.read_bytes(), human.read_bytes()
    files = ["--ann-file", human, "--img-dir", demo / "val", "--out", human]
    for done in (
        label(trained, boxes, demo / "val", boxes, code=1),
        run("tools/label_baseline.py", "box", *files, code=1),
        run("tools/dataset_converters/boxes_only.py", human, tmp_path / "." / human.name, code=1),
        run("tools/evaluate_labels.py", human, human, "--out", human, code=1),
        run("tools/dataset_converters/import_boxes.py", "csv", boxes, boxes, code=1),
        run("tools/model_converters/mal_released_to_mmdet.py", human, human, code=1),
        run("tools/dataset_converters/import_boxes.py", "labelme", tmp_path, boxes, code=1),
    ):
        assert "is also read, and what it holds would be lost" in done.stderr
    assert (boxes.read_bytes(), human.read_bytes()) == before
    done = label(trained, boxes, demo / "val", tmp_path, code=1)
    assert "is a folder; expected the name of a file to write" in done.stderr


def test_what_is_no_labeler(trained, demo, tmp_path):
    files = demo / "boxes_val.json", demo / "val", tmp_path / "labels.json"
    done = label((trained[1], trained[0]), *files, code=1)
    assert "are config and checkpoint in the right order?" in done.stderr
    done = label((ROOT / "configs/mask_rcnn/mask-rcnn_demo-mal.py", trained[1]), *files, code=1)
    assert "the config's model is a MaskRCNN; expected a MaskAutoLabeler" in done.stderr


def test_misspelt_options_are_named(trained, demo, tmp_path, capfd):
    files = demo / "boxes_val.json", demo / "val", tmp_path / "labels.json"
    done = label(trained, *files, "--cfg-options", "test_dataloder.num_workers=1", "compile=False")
    text = done.stdout + done.stderr + "".join(capfd.readouterr())
    assert "sets test_dataloder, which the config does not have; is test_dataloader meant?" in text
    assert text.count("which the config does not have") == 1


def test_a_file_without_one_usable_box(trained, demo, tmp_path):
    boxes = read_coco(demo / "boxes_val.json")
    boxes["annotations"] = [{**boxes["annotations"][0], "bbox": [0, 0, -1, 5]}]
    write_json(tmp_path / "boxes.json", boxes)
    out = tmp_path / "labels.json"
    label(trained, tmp_path / "boxes.json", demo / "val", out, code=3)
    assert read_coco(out)["annotations"] == []
    report = json.loads((tmp_path / "labels.json.report.json").read_text())
    assert report["labeled"] == 0 and len(report["failed"]) == 1


DYING_RANK = """
import os, signal
from mal_mmdet.labeling import LabelShards, label_writer
label_writer.SHARD_BOXES = 1
write = LabelShards.write
def write_or_die(self, *args):
    if os.environ["RANK"] == os.environ.get("DYING_RANK") and self.shards():
        open("died", "w").close()
        os.kill(os.getpid(), signal.SIGKILL)
    write(self, *args)
LabelShards.write = write_or_die
"""


def test_two_processes_write_the_bytes_of_one(trained, demo, tmp_path):
    """Also when one of them dies on the way, which ends both, and the job is resumed."""
    config, checkpoint = trained
    (tmp_path / "dying_rank.py").write_text(DYING_RANK)
    dying_config = tmp_path / config.name
    dying_config.write_text(
        f"_base_ = {str(config)!r}\n"
        "custom_imports = dict(imports=['mal_mmdet', 'dying_rank'], allow_failed_imports=False)\n"
    )
    one, two = tmp_path / "one.json", tmp_path / "two.json"
    options = ["--cfg-options", "model.crops_per_batch=3"]
    label(trained, demo / "boxes_train.json", demo / "train", one, *options)
    command = ["bash", ROOT / "tools/dist_generate_labels.sh", dying_config, checkpoint, "2"]
    command += ["--ann-file", demo / "boxes_train.json", "--img-dir", demo / "train"]
    command += ["--out", two, "--resume", *options]
    env = os.environ | dict(
        CUDA_VISIBLE_DEVICES="", OMP_NUM_THREADS="1", PORT=free_port(), PYTHONPATH=str(tmp_path)
    )
    env["PATH"] = f"{Path(sys.executable).parent}:{env['PATH']}"
    for dying in ("1", None):
        if dying:
            env["DYING_RANK"] = dying
        else:
            env.pop("DYING_RANK")
        done = subprocess.run(
            command, env=env, capture_output=True, text=True, timeout=300, cwd=tmp_path
        )
        assert (done.returncode != 0) == (dying is not None), done.stderr[-3000:]
        if dying:
            assert time.time() - (tmp_path / "died").stat().st_mtime < 60
            assert "Signal 9 (SIGKILL) received" in done.stderr and not two.exists()
            assert list((tmp_path / "two.json.shards").glob("*.shard"))
    assert one.read_bytes() == two.read_bytes()


# Starts the tasks as Slurm would on one machine without GPU.
SRUN = """#!/bin/sh
while [ "$1" != python ]; do
    case "$1" in --ntasks=*) tasks="${1#*=}" ;; --gres*) exit 9 ;; esac
    shift
done
export SLURM_NTASKS="$tasks" SLURM_NODELIST=here SLURM_STEP_ID=0
running=""
for task in $(seq 0 $((tasks - 1))); do
    SLURM_PROCID="$task" SLURM_LOCALID="$task" "$@" & running="$running $!"
done
for process in $running; do wait "$process" || exit; done
"""
SCONTROL = """#!/bin/sh
[ "$*" = "show hostnames here" ] && echo localhost
"""


def test_slurms_tasks_write_the_bytes_of_one_process(trained, demo, tmp_path):
    files = ["--ann-file", demo / "boxes_train.json", "--img-dir", demo / "train"]
    for name, text in dict(srun=SRUN, scontrol=SCONTROL).items():
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    env = os.environ | dict(
        CUDA_VISIBLE_DEVICES="", OMP_NUM_THREADS="1", GPUS="2", GRES="", MASTER_PORT=free_port()
    )
    env["PATH"] = f"{tmp_path}:{Path(sys.executable).parent}:{env['PATH']}"
    one, two = tmp_path / "one.json", tmp_path / "two.json"
    label(trained, demo / "boxes_train.json", demo / "train", one)
    command = ["bash", ROOT / "tools/slurm_generate_labels.sh", "part", "job", *trained, *files]
    done = subprocess.run(
        [*command, "--out", two], env=env, capture_output=True, text=True, timeout=300, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert one.read_bytes() == two.read_bytes()
    assert "GPU number: 2" in done.stdout + done.stderr  # MMEngine calls ranks so

    command = ["tools/generate_labels.py", *trained, *files, "--out", tmp_path / "three.json"]
    alone = run(*command, "--launcher", "slurm", code=1)
    assert "expected a process started by srun" in alone.stderr


def test_boxes_only_and_evaluate_labels(demo, tmp_path):
    out = tmp_path / "boxes.json"
    run("tools/dataset_converters/boxes_only.py", demo / "instances_val.json", out)
    assert out.read_bytes() == (demo / "boxes_val.json").read_bytes()
    truth = demo / "instances_val.json"
    figures = tmp_path / "figures.json"
    done = run("tools/evaluate_labels.py", truth, truth, "--out", figures)
    assert "1.0000" in done.stdout
    assert json.loads(figures.read_text())["miou"] == 1


def test_boxes_to_coco(tmp_path):
    make_voc(tmp_path)
    tool, out = "tools/dataset_converters/boxes_to_coco.py", tmp_path / "annotations/boxes.json"
    part = "train_dataloader.dataset.dataset.datasets"
    options = [f"{part}.{i}.data_root={tmp_path}" for i in range(2)]
    files = [config_path("voc"), out, "--img-dir", tmp_path]
    done = run(tool, *files, "--cfg-options", *options)
    assert f"boxes: {out}" in done.stdout
    coco = read_coco(out)
    assert [a["bbox"] for a in coco["annotations"]][::2] == [[5, 10, 60, 50], [40, 20, 70, 60]]
    assert "segmentation" not in out.read_text()
    detector = ROOT / "configs/mask_rcnn/mask-rcnn_demo-mal.py"
    done = run(tool, detector, tmp_path / "no.json", "--img-dir", tmp_path, code=1)
    assert "expected 'BoxCropDataset'" in done.stderr and not (tmp_path / "no.json").exists()


def test_youtube_vis_there_and_back(trained, demo, tmp_path):
    """Split, labeled by the network, merged; one frame's image is missing."""
    tool, frames = "tools/dataset_converters/youtube_vis.py", tmp_path / "frames/v"
    frames.mkdir(parents=True)
    for i in (1, 2):
        (frames / f"{i}.jpg").write_bytes((demo / f"train/0000{i}.jpg").read_bytes())
    video = dict(
        id=5, width=SIZE, height=SIZE, length=3, file_names=["v/1.jpg", "v/2.jpg", "v/3.jpg"]
    )
    boxes = [[20.0, 30.0, 90.0, 80.0], None, [25.0, 30.0, 90.0, 80.0]]
    track = dict(id=8, video_id=5, category_id=1, iscrowd=0, bboxes=boxes, note="kept")
    second = dict(id=9, video_id=5, category_id=1, iscrowd=0, bboxes=[None, [9, 8, 70, 60], None])
    vis = dict(videos=[video], categories=[dict(id=1, name="a")], annotations=[track, second])
    write_json(tmp_path / "vis.json", vis)
    run(tool, "split", tmp_path / "vis.json", tmp_path / "boxes.json")
    labels, out = tmp_path / "labels.json", tmp_path / "out.json"
    label(trained, tmp_path / "boxes.json", tmp_path / "frames", labels, code=3)
    done = run(tool, "merge", tmp_path / "vis.json", labels, out, code=3)
    assert "1 boxes were left out" in done.stdout and f"labels: {out}" in done.stdout
    merged = json.loads(out.read_text())
    first, other = merged["annotations"]
    assert first["note"] == "kept" and first["bboxes"] == [boxes[0], None, None]
    assert [rle is None for rle in first["segmentations"]] == [False, True, True]
    assert [rle is None for rle in other["segmentations"]] == [True, False, True]
    mask = mask_utils.decode(first["segmentations"][0])
    assert first["areas"][0] == mask.sum() == mask[30:110, 20:110].sum() > 0
    done = run(tool, "split", labels, out, code=1)
    assert "no list 'videos'" in done.stderr


def test_evaluate_labels_by_category_group_and_boundary(demo, tmp_path):
    truth, figures = demo / "instances_val.json", tmp_path / "figures.json"
    coco = read_coco(truth)
    names = {c["id"]: c["name"] for c in coco["categories"]}
    present = sorted({names[a["category_id"]] for a in coco["annotations"]})
    write_json(tmp_path / "groups.json", dict(some=present[:2]))
    options = ["--classwise", "--boundary", "--groups", tmp_path / "groups.json"]
    done = run("tools/evaluate_labels.py", truth, truth, *options, "--out", figures)
    found = json.loads(figures.read_text())
    assert "Boundary IoU" in done.stdout and "some" in done.stdout
    for key in ("miou_group/some", "boundary_miou", *(f"miou_category/{n}" for n in present)):
        assert found[key] == 1
    assert all(name in done.stdout for name in present)
    coco["categories"][0]["name"] = "car [old]"
    coco["categories"][1]["name"] = "a[/b]"  # what rich would take for markup
    write_json(tmp_path / "brackets.json", coco)
    brackets = tmp_path / "brackets.json"
    done = run("tools/evaluate_labels.py", brackets, brackets, "--classwise")
    assert "car [old]" in done.stdout and "a[/b]" in done.stdout
    done = run("tools/evaluate_labels.py", truth, truth, "--groups", "coco", code=1)
    assert "groups.things has the unknown categories" in done.stderr
    done = run("tools/evaluate_labels.py", truth, truth, "--groups", "lvis", code=2)
    assert "--groups takes ['coco'] or a JSON file" in done.stderr


def test_test_tool_prints_mask_iou(trained, tmp_path):
    done = run("tools/test.py", *trained, "--work-dir", tmp_path)
    (metrics,) = tmp_path.glob("*/*.json")
    miou = json.loads(metrics.read_text())["mask/miou"]
    assert 0 < miou < 1 and f"mask/miou: {miou:.4f}" in done.stdout + done.stderr


def test_test_tool_draws_predictions(trained, tmp_path):
    run("tools/test.py", *trained, "--work-dir", tmp_path, "--show-dir", "drawn")
    drawn = list(tmp_path.glob("*/drawn/*"))
    assert len(drawn) == 4 and Image.open(drawn[0]).size == (2 * SIZE, SIZE)


def test_train_tool_takes_mmdets_arguments(trained, tmp_path):
    options = ["--work-dir", tmp_path, "--auto-scale-lr", "--cfg-options", "train_cfg.max_epochs=1"]
    run("tools/train.py", trained[0], *options)
    assert (tmp_path / "epoch_1.pth").exists()
    cfg = Config.fromfile(trained[0])
    scale = cfg.train_dataloader.batch_size / cfg.auto_scale_lr.base_batch_size
    optimizer = torch.load(tmp_path / "epoch_1.pth", weights_only=False)["optimizer"]
    lr = cfg.optim_wrapper.optimizer.lr
    assert scale < 1 and optimizer["param_groups"][0]["initial_lr"] == pytest.approx(scale * lr)
    done = run("tools/train.py", trained[0], *options, "--resume")
    assert "resumed epoch: 1" in done.stdout + done.stderr


def test_visualize_masks(demo, tmp_path):
    truth, out = demo / "instances_val.json", tmp_path / "sheet.png"
    options = ["--img-dir", demo / "val", "--out", out, "--order", "worst"]
    run("tools/visualize.py", "masks", truth, truth, *options)
    number = min(15, len(read_coco(truth)["annotations"]))
    rows = -(-number // 3)
    assert Image.open(out).size == (3 * (3 * 128 + 8), rows * (128 + 4))


def test_visualize_attention(trained, demo, tmp_path):
    files = ["--ann-file", demo / "boxes_val.json", "--img-dir", demo / "val", "--out", tmp_path]
    ids = [str(a["id"]) for a in read_coco(demo / "boxes_val.json")["annotations"][:2]]
    options = ["--layers", "1", "--ids", *ids, "--source", "teacher", "--size", "64"]
    done = run("tools/visualize.py", "attention", *trained, *files, *options)
    for ann_id in ids:
        path = tmp_path / f"attention_{ann_id}.png"
        assert f"picture: {path}" in done.stdout
        assert Image.open(path).size == (2 * 64 + 8, 64 + 4)


def test_export_and_import_of_other_formats(demo, tmp_path):
    """Labels out as YOLO's polygons; the boxes of these back in."""
    truth, folder = demo / "instances_val.json", "tools/dataset_converters"
    for name in ("yolo", "labelme", "cvat"):
        done = run(f"{folder}/export_labels.py", name, truth, tmp_path / name)
        assert f"labels: {tmp_path / name}" in done.stdout
    out, source = tmp_path / "boxes.json", tmp_path / "yolo/labels"
    options = ["--img-dir", demo / "val", "--classes", tmp_path / "yolo/data.yaml"]
    done = run(f"{folder}/import_boxes.py", "yolo", source, out, *options)
    coco, back = read_coco(truth), read_coco(out)
    assert f"boxes: {out} ({len(coco['annotations'])} in 4 images)" in done.stdout
    names = [{c["id"]: c["name"] for c in file["categories"]} for file in (coco, back)]
    for one, other in zip(coco["annotations"], back["annotations"], strict=True):
        assert names[0][one["category_id"]] == names[1][other["category_id"]]
        np.testing.assert_allclose(one["bbox"], other["bbox"], atol=1.5)
    done = run(f"{folder}/import_boxes.py", "yolo", source, out, *options[:2], code=1)
    assert "give their names in order" in done.stderr


def test_review(demo, tmp_path):
    """A page of labels, and its decisions applied to them."""
    labels, page, out = demo / "instances_val.json", tmp_path / "page", tmp_path / "out.json"
    ids = [ann["id"] for ann in read_coco(labels)["annotations"]]
    options = ["--img-dir", demo / "val", "--gt", labels, "--size", 64]
    done = run("tools/review_labels.py", labels, *options, "--out", page)
    assert f"review: {page / 'index.html'} ({len(ids)} boxes)" in done.stdout
    done = run("tools/review_labels.py", labels, *options, "--out", page, code=1)
    assert "is a review page already; choose another folder, or --overwrite" in done.stderr
    text = (page / "data.js").read_text()
    data = json.loads(text[text.index("{") : text.rindex("}") + 1])
    assert data["boxes"]["iou"] == [1] * len(ids) and data["thumbs"]["size"] == 64
    lists = dict(accepted=ids[:2], rejected=ids[2:4], flagged=[])
    decisions = dict(format="mal_mmdet review", version=1, labels=data["labels"]) | lists
    write_json(tmp_path / "decisions.json", decisions)
    done = run("tools/apply_review.py", labels, tmp_path / "decisions.json", "--out", out)
    assert f"labels: {out} (2 accepted, 2 rejected, 0 flagged)" in done.stdout
    assert [ann["id"] for ann in read_coco(out)["annotations"]] == ids[:2] + ids[4:]


def test_a_labeler_supervised_by_masks(trained, demo, tmp_path, monkeypatch):
    """It learns the masks of its own crops, and labels with the config that learns from boxes."""
    script = ROOT / "tools/analysis_tools/supervise_labeler.py"
    monkeypatch.syspath_prepend(script.parent)
    tool = importlib.import_module("supervise_labeler")
    masks, found, losses = demo / "instances_train.json", [], []
    targets, flips = [], []
    crop_mask, dice_loss, loss = tool.crop_mask, tool.dice_loss, tool.SupervisedLabeler.loss

    def note(mask, crop_bbox, size):
        found.append((mask, crop_bbox, crop_mask(mask, crop_bbox, size)))
        return found[-1][-1]

    def note_loss(probs, target):
        targets.extend(target)
        losses.append(dice_loss(probs, target))
        return losses[-1]

    def note_flips(self, inputs, data_samples):
        flips.extend(sample.flip for sample in data_samples)
        return loss(self, inputs, data_samples)

    monkeypatch.setattr(tool.SupervisedLabeler, "loss", note_flips)
    monkeypatch.setattr(tool, "crop_mask", note)
    monkeypatch.setattr(tool, "dice_loss", note_loss)
    options = ["optim_wrapper.optimizer.lr=0.003", "train_cfg.max_epochs=12"]
    args = [trained[0], masks, "--work-dir", tmp_path, "--cfg-options", *options]
    with arguments(script, [*map(str, args)]):
        tool.main()
    assert 0 < sum(flips) < len(flips) == len(targets) == len(found)
    for (*_, straight), target, flip in zip(found, targets, flips):
        assert torch.equal(target, straight.flip(1) if flip else straight)
    losses = [float(value) for value in losses]
    assert len(losses) > 50 and np.mean(losses[-5:]) < 0.9 * np.mean(losses[:5])
    for mask, (x0, y0, x1, y1), target in found[:20]:
        # The mean over the crop is the share of its pixels that the mask has, seen or not.
        pixels = [[y, x] for y, x in np.argwhere(mask) if y0 <= y < y1 and x0 <= x < x1]
        share = len(pixels) / ((x1 - x0) * (y1 - y0))
        assert abs(float(target.mean()) - share) < 0.02
        centre = (np.mean(pixels, 0) + 0.5 - [y0, x0]) / [y1 - y0, x1 - x0] * target.shape[0]
        cells = torch.arange(target.shape[0]) + 0.5
        weighted = [float((target.sum(1 - axis) * cells).sum() / target.sum()) for axis in (0, 1)]
        assert np.abs(weighted - centre).max() < 0.5
    args[1:4] = [demo / "boxes_train.json", "--work-dir", tmp_path / "none"]
    with (
        arguments(script, [*map(str, args)]),
        pytest.raises(ValueError, match=r"annotation \d+ is trained on, but has no mask"),
    ):
        tool.main()
    files = ["--ann-file", demo / "boxes_val.json", "--img-dir", demo / "val"]
    checkpoint = tmp_path / "epoch_12.pth"
    run("tools/generate_labels.py", trained[0], checkpoint, *files, "--out", tmp_path / "out.json")
    found = read_coco(tmp_path / "out.json")["annotations"]
    assert all(ann["segmentation"] for ann in found)


def test_benchmark_labeling(trained, tmp_path):
    """Runs, and finds the masks of both pipelines alike; its figures mean nothing at this size."""
    few = ["--images", 2, "--boxes", 3, "--size", 500, 450, "--repeats", 1]
    few += ["--out", tmp_path / "out.json"]
    few += ["--cfg-options", "test_dataloader.dataset.pipeline.0.margin=[0.3,0.2]"]  # one is taken
    done = run("tools/analysis_tools/benchmark_labeling.py", *trained, *few)
    figures = json.loads((tmp_path / "out.json").read_text())
    assert figures["boxes"] == 6 and figures["seconds_per_box"]["plain"]["in all"] > 0
    for row in ("read", "crop", "network", "paste", "encode", "boxes/s", "ratio: ", "TFLOP/s"):
        assert row in done.stdout


def test_benchmark_labeling_in_two_processes(trained, tmp_path):
    """The masks of both pipelines are compared there as well, which takes those of both ranks."""
    few = ["--images", 4, "--boxes", 2, "--size", 500, 450, "--repeats", 1]
    few += ["--launcher", "pytorch", "--out", tmp_path / "out.json"]
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    command += [ROOT / "tools/analysis_tools/benchmark_labeling.py", *trained, *few]
    done = subprocess.run([*map(str, command)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("ratio: ") == 1
    stages = json.loads((tmp_path / "out.json").read_text())["seconds_per_box"]["labeling"]
    parts = sum(seconds for stage, seconds in stages.items() if stage in ("network", "read"))
    assert 0 < parts < stages["in all"]


def test_the_slowest_process_is_one_of_them(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "tools/analysis_tools")
    benchmark = importlib.import_module("benchmark_labeling")
    ranks = [{"network": 3.0, "in all": 5.0}, {"network": 1.0, "read": 4.0, "in all": 6.0}]
    monkeypatch.setattr(benchmark.dist, "all_gather_object", lambda seconds: ranks)
    assert benchmark.of_slowest(ranks[0]) == ranks[1]


def test_the_benchmark_does_not_compare_other_boxes(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(ROOT / "tools/analysis_tools")
    benchmark = importlib.import_module("benchmark_labeling")
    masks = [encode_mask(np.eye(4, dtype=bool))] * 2
    ann = dict(id=1, image_id=1, category_id=1, bbox=[0, 0, 4, 4], segmentation=masks[0])
    write_json(tmp_path / "labels.json", dict(images=[], annotations=[ann], categories=[]))
    assert benchmark.compare(tmp_path / "labels.json", {0: masks[0]}) == 1
    with pytest.raises(RuntimeError, match="1 of 2 boxes were labeled"):
        benchmark.compare(tmp_path / "labels.json", dict(enumerate(masks)))


def test_benchmark_mean_field(tmp_path):
    options = ["--crops", 1, "--sizes", 32, "--zetas", 0.3, "--runs", 1]
    run("tools/analysis_tools/benchmark_mean_field.py", *options, "--out", tmp_path / "out.json")
    [row] = json.loads((tmp_path / "out.json").read_text())["rows"]
    assert row["plain_ms"] > 0 and row["mean_field_ms"] > 0
    assert row["equal"] > 0.99 and row["equal_in_boxes"] > 0.99
    assert row["equal_without_epsilon"] > 0.99 and row["equal_without_epsilon_float64"] > 0.99


def test_the_baseline_of_the_step_finds_the_same_losses(trained, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "tools/analysis_tools")
    benchmark = importlib.import_module("benchmark_training")
    cfg = Config.fromfile(trained[0])
    cfg.model.crf_loss.num_steps = 3  # after more, the baseline's 1e-6 may decide
    cfg.model.mil_loss.warmup_iters = cfg.model.crf_loss.warmup_iters = 0
    found = []
    for stated in (False, True):
        torch.manual_seed(0)
        trainer = benchmark.Trainer(cfg, stated)
        forward = trainer.model.loss

        def note(*args, forward=forward):
            found.append(forward(*args))
            return found[-1]

        trainer.model.loss = note
        trainer.step()
    torch.testing.assert_close(*found)
    assert min(found[0].values()) > 0.01
    assert any(p.grad is None and p.requires_grad for p in trainer.model.teacher.parameters())
    with pytest.raises(ValueError, match="use --no-baseline"):
        benchmark.stated_mean_field(*[None] * 3, zeta=0.1, omega=2.0, kernel_size=3, num_steps=1)


@pytest.mark.parametrize("groups", [1, 2, 8])
@pytest.mark.parametrize("kind", [torch.nn.Conv2d, torch.nn.ConvTranspose2d])
def test_operations_of_convolutions_are_counted(monkeypatch, groups, kind):
    """A multiplication and an addition of each weight, forward and for each gradient."""
    monkeypatch.syspath_prepend(ROOT / "tools/analysis_tools")
    benchmark = importlib.import_module("benchmark_training")
    conv, images = kind(8, 16, 3, stride=2, groups=groups), torch.rand(2, 8, 9, 9)
    with benchmark.OperationCounter(display=False) as counter:
        found = conv(images)
    # Each weight meets every place of the smaller of the two maps.
    once = 2 * conv.weight.numel() * 2 * min(found[0, 0].numel(), images[0, 0].numel())
    assert counter.get_total_flops() == once
    for needed, times in ((False, 2), (True, 3)):
        with benchmark.OperationCounter(display=False) as counter:
            conv(images.requires_grad_(needed)).sum().backward()
        assert counter.get_total_flops() == times * once


@pytest.mark.parametrize(
    "how", [(), ("--cfg-options", "model.network.channels_last=True"), ("--no-baseline",)]
)
def test_benchmark_training(trained, tmp_path, how):
    options = ["--steps", 2, "--data", 2, "--out", tmp_path / "out.json", *how]
    run("tools/analysis_tools/benchmark_training.py", trained[0], *options)
    figures = json.loads((tmp_path / "out.json").read_text())
    parts = ("student, forward", "teacher, forward", "student, backward", "CRF loss, forward")
    assert all(0 < figures[part] < figures["step"] for part in parts) and figures["data"] > 0
    assert 0 < figures["outside the networks"] < 1
    assert figures["floor"] > 0 and ("as stated" in figures) == ("--no-baseline" not in how)
    if "as stated" in figures:
        stated = figures["as stated"]
        assert all(0 < stated[part] < stated["step"] for part in parts)
    assert 0.1 < figures["peak memory, GiB"] < 16


@pytest.mark.slow
def test_benchmark_compiled_training(trained, tmp_path):
    """In a process of its own: torch.compile imports setuptools, which has to come early."""
    script, out = ROOT / "tools/analysis_tools/benchmark_training.py", tmp_path / "out.json"
    options = ["--compile", "--steps", "1", "--warmup", "1", "--out", out]
    subprocess.run([sys.executable, script, trained[0], *options], check=True)
    assert json.loads(out.read_text())["step"] > 0


def test_estimate_training(trained):
    """The rows follow from the network's parameters and the work of a crop, printed above them."""
    options = ["--gpus", 2, 16, "--crops", 3.6e6, "--large", 0, "--tflops", 0.002]
    options += ["--utilization", 0.5]  # 1 GFLOP/s a GPU
    done = run("tools/analysis_tools/estimate_training.py", trained[0], *options)
    student, teacher = (
        float(re.search(rf"medium box: .*{name} ([.\d]+) GFLOP", done.stdout)[1])
        for name in ("student", "teacher")
    )
    assert 2.5 * teacher < student < 3.5 * teacher
    (million,) = re.findall(r"([.\d]+) M parameters", done.stdout)
    rows = [
        [float(cell.split()[0]) for cell in line.strip("│ ").split("│")]
        for line in done.stdout.splitlines()
        if line.startswith("│")
    ]
    assert [row[0] for row in rows] == [2, 16]
    for gpus, rate, hours, _, megabytes, _ in rows:
        assert rate == pytest.approx(gpus / (student + teacher), rel=0.01)
        assert hours == pytest.approx(1000 / rate, rel=0.01)
        assert megabytes == pytest.approx(8 * float(million) * (1 - 1 / gpus), rel=0.01)


def test_benchmark_data(trained, tmp_path):
    few = ["--sizes", "160x120", "--files", 1, "--images", 4, "--crops", 4, "--repeats", 1]
    out = tmp_path / "out.json"
    run("tools/analysis_tools/benchmark_data.py", trained[0], *few, "--out", out)
    figures = json.loads(out.read_text())
    found = figures["sizes"]["160x120"]["ms"]
    for name in ("plain", "ours", "image read once", "reduced scale"):
        column = found[name]
        assert 0 <= column["rest"] < column["in all"]
        assert min(column[s] for s in ("read", "crop", "pack", "worker process")) > 0
    assert figures["step_teraflops"] > 0


def test_benchmark_label_memory():
    done = run("tools/analysis_tools/benchmark_label_memory.py", "--boxes", 20, 40)
    assert done.stdout.count("bytes for each further box") == 3
