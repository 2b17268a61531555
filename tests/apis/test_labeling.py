# SPDX-License-Identifier: Apache-2.0
"""Labeling as a whole: what it writes, and that nothing it has done is lost."""

import copy
import json
import os
import random
import resource
import shutil
import signal
import time
from functools import cached_property
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from mmdet.registry import MODELS
from mmdet.utils import register_all_modules
from pycocotools import mask as mask_utils

from mal_mmdet.apis import generate_labels
from mal_mmdet.apis.launch import load_weights
from mal_mmdet.datasets import label_batch_sampler
from mal_mmdet.datasets.label_batch_sampler import cut_batches
from mal_mmdet.datasets.transforms import ExpandBBox
from mal_mmdet.labeling import (
    LabelShards,
    encode_mask,
    file_sha256,
    label_writer,
    read_coco,
    segmentation_to_mask,
    shard_folder,
    to_rle,
    write_json,
)
from mal_mmdet.models import MaskAutoLabeler
from tests.conftest import tiny_config
from tests.forked import SERVER


@pytest.fixture(scope="module")
def job(demo, tmp_path_factory):
    """Arguments of generate_labels: tiny network, weights, the demo's training boxes."""
    folder = tmp_path_factory.mktemp("job")
    cfg = tiny_config(demo, folder / "work")
    cfg.model.crops_per_batch = 3
    torch.manual_seed(0)
    model = MODELS.build(cfg.model)
    model.init_weights()
    torch.save(dict(state_dict=model.state_dict()), folder / "mal.pth")
    coco = read_coco(demo / "boxes_train.json")
    # A file of labels that is longer than all else that is written.
    coco["info"]["description"] += ", and so on" * 1000
    write_json(folder / "boxes.json", coco)
    return cfg, folder / "mal.pth", folder / "boxes.json", demo / "train"


@pytest.fixture(scope="module")
def undisturbed(job, tmp_path_factory):
    out = tmp_path_factory.mktemp("undisturbed") / "labels.json"
    assert generate_labels(*job, out, date="2020-02-02") == 0
    return out.read_bytes()


@pytest.fixture(autouse=True)
def small_shards(monkeypatch):
    monkeypatch.setattr(label_writer, "SHARD_BOXES", 1)


def work(job, out, begun, limit=None, die_in_merge=False):
    """Runs in a child: labels on, with the shards there are, and takes its time with each."""
    label_writer.SHARD_BOXES = 1
    torch.set_num_threads(1)
    register_all_modules(init_default_scope=True)
    if limit:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    if die_in_merge:
        label_writer.ListWriter.add = lambda *args: os.kill(os.getpid(), signal.SIGKILL)
    take, write = LabelShards.open, LabelShards.write

    def take_and_tell(self, *args):
        begun.set()
        return take(self, *args)

    def write_slowly(self, *args, **options):
        time.sleep(0.1)
        write(self, *args, **options)

    LabelShards.open, LabelShards.write = take_and_tell, write_slowly
    generate_labels(*job, out, date="2020-02-02", resume=True)


def start(job, out, **options):
    """A child that is just about to take hold of the shards."""
    begun = SERVER.Event()
    child = SERVER.Process(target=work, args=(job, out, begun), kwargs=options)
    child.start()
    assert begun.wait(120)
    return child


def test_a_run_killed_at_any_moment_goes_on_to_the_same_bytes(job, undisturbed, tmp_path):
    rng, out = random.Random(0), tmp_path / "labels.json"
    shards = LabelShards(shard_folder(out))
    child, begun = start(job, out), time.monotonic()
    child.join(120)
    duration = time.monotonic() - begun
    assert child.exitcode == 0 and out.read_bytes() == undisturbed
    out.unlink()
    killed, stages = 0, set()
    while killed < 20:
        child = start(job, out)
        child.join(rng.uniform(0, 0.6 * duration))
        child.kill()
        child.join()
        killed += child.exitcode == -signal.SIGKILL
        stages.add(len(shards.finished_samples()))
        if out.exists():
            assert out.read_bytes() == undisturbed
            if child.exitcode == 0:
                assert not shards.folder.exists()
            out.unlink()
    assert len(stages) >= 2, stages
    assert generate_labels(*job, out, date="2020-02-02", resume=True) == 0
    assert out.read_bytes() == undisturbed
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {"labels.json", "labels.json.report.json"}


def test_killed_between_shards_and_resumed_without_doing_them_again(
    job, undisturbed, tmp_path, monkeypatch
):
    out = tmp_path / "labels.json"
    child = start(job, out)
    shards = LabelShards(shard_folder(out))
    while len(shards.shards()) < 2:
        assert child.is_alive()
        time.sleep(0.01)
    with pytest.raises(RuntimeError, match="another process is writing labels"):
        LabelShards(shard_folder(out), {}).open(resume=True)
    child.kill()
    child.join()
    assert child.exitcode == -signal.SIGKILL
    done = shards.finished_samples()
    with pytest.raises(RuntimeError, match="shards of an earlier run that did not end"):
        generate_labels(*job, out)
    with pytest.raises(RuntimeError, match="was written with other config; labels"):
        generate_labels(*job, out, thresholds=[0.7], resume=True)
    cfg, checkpoint, boxes, images = job
    other = tmp_path / "other.json"
    coco = read_coco(boxes)
    coco["annotations"].pop()
    write_json(other, coco)
    with pytest.raises(RuntimeError, match="was written with other boxes"):
        generate_labels(cfg, checkpoint, other, images, out, resume=True)
    state = torch.load(checkpoint)
    next(iter(state["state_dict"].values())).add_(1)
    torch.save(state, tmp_path / "other.pth")
    with pytest.raises(RuntimeError, match="was written with other weights"):
        generate_labels(cfg, tmp_path / "other.pth", boxes, images, out, resume=True)

    cut = shards.shards()[0]
    cut.write_bytes(cut.read_bytes()[:-20])
    seen = []
    process = label_writer.LabelWriter.process
    monkeypatch.setattr(
        label_writer.LabelWriter,
        "process",
        lambda self, batch, samples: (
            seen.extend(s["sample_idx"] for s in samples),
            process(self, batch, samples),
        ),
    )
    assert generate_labels(*job, out, date="2020-02-02", resume=True) == 0
    assert out.read_bytes() == undisturbed
    assert int(cut.stem.split("-")[0]) in seen and not set(seen) & (done - set(seen))
    assert len(done & set(seen)) < len(done)


def test_workers_of_a_killed_process_do_not_hold_the_folder(job, tmp_path):
    """They notice the end of their parent only after some seconds."""
    cfg, *files = job
    cfg = cfg.copy()
    cfg.test_dataloader.num_workers = 2
    out = tmp_path / "labels.json"
    child = start((cfg, *files), out)
    shards = LabelShards(shard_folder(out), {})
    while not list(shards.folder.glob("*.shard")):
        assert child.is_alive()
        time.sleep(0.01)
    child.kill()
    child.join()
    shards.folder.joinpath("fingerprint.json").write_text("{}")
    shards.open(resume=True)


def test_killed_in_the_merge(job, undisturbed, tmp_path):
    out = tmp_path / "labels.json"
    for _ in range(2):
        child = start(job, out, die_in_merge=True)
        child.join(120)
        assert child.exitcode == -signal.SIGKILL
        assert [path.name for path in tmp_path.iterdir()] == ["labels.json.shards"]
    assert len(list(shard_folder(out).glob(".*"))) == 2  # not those of the first time
    assert generate_labels(*job, out, date="2020-02-02", resume=True) == 0
    assert out.read_bytes() == undisturbed and len(list(tmp_path.iterdir())) == 2


def test_shards_that_are_gone_are_not_taken_for_failures(job, undisturbed, tmp_path, monkeypatch):
    out = tmp_path / "labels.json"
    with monkeypatch.context() as patch:
        write = LabelShards.write
        patch.setattr(LabelShards, "write", lambda self, s, r: 3 in s or write(self, s, r))
        with pytest.raises(RuntimeError, match=r"labels of \d of 8 images are not in .*--resume"):
            generate_labels(*job, out, date="2020-02-02")
    assert not out.exists()
    assert generate_labels(*job, out, date="2020-02-02", resume=True) == 0
    assert out.read_bytes() == undisturbed


def test_mended_images_are_labeled_by_a_resumed_run(job, undisturbed, tmp_path):
    cfg, checkpoint, boxes, images = job
    folder, out = tmp_path / "images", tmp_path / "labels.json"
    shutil.copytree(images, folder)
    broken = sorted(folder.iterdir())[2]
    good = broken.read_bytes()
    broken.write_bytes(good[:10])
    files = cfg, checkpoint, boxes, folder, out
    failed = generate_labels(*files, date="2020-02-02")
    assert failed > 0 and len(read_coco(out)["annotations"]) + failed == len(
        json.loads(undisturbed)["annotations"]
    )
    assert len(LabelShards(shard_folder(out)).finished_samples()) == 7
    broken.write_bytes(good)
    assert generate_labels(*files, date="2020-02-02", resume=True) == 0
    assert out.read_bytes() == undisturbed and not shard_folder(out).exists()


def test_a_disk_that_is_full_at_the_merge_loses_nothing(job, undisturbed, tmp_path):
    """The limit on the size of a file lets shards through, and stops the label file."""
    out = tmp_path / "labels.json"
    child = start(job, out, limit=len(undisturbed) - 1)
    child.join(120)
    assert child.exitcode == 1 and not out.exists()
    assert not list(tmp_path.glob(".labels*"))
    assert len(LabelShards(shard_folder(out)).finished_samples()) == 8
    assert generate_labels(*job, out, date="2020-02-02", resume=True) == 0
    assert out.read_bytes() == undisturbed


def test_provenance(job, tmp_path):
    out = tmp_path / "labels.json"
    generate_labels(*job, out, thresholds=[0.4], label_source="both")
    info = read_coco(out)["info"]["mal_mmdet"]
    assert info["versions"]["torch"] == torch.__version__ and "date" not in info
    assert info["config"] == "mal_vit-demo_1xb16_demo"
    assert info["thresholds"] == [0.4] and info["label_source"] == "both"
    assert info["refine_test"] is True and info["flip_test"] is False
    assert info["color_weight"] == 4.0
    assert len(info["weights_sha256"]) == 64


def test_labeling_in_the_work_dir_of_a_training(job, undisturbed, tmp_path):
    """Which was resumed, and says so in its config: that stays, and no other weights are used."""
    cfg, *others = job
    cfg = copy.deepcopy(cfg)
    cfg.work_dir, cfg.resume = str(tmp_path / "work"), True
    trained = tmp_path / "work" / f"{Path(cfg.filename).name}"
    trained.parent.mkdir()
    trained.write_text("# the training's\n")
    state = torch.load(others[0], weights_only=True)["state_dict"]
    later = {key: torch.zeros_like(value) for key, value in state.items()}
    torch.save(dict(state_dict=later, meta=dict(epoch=4, iter=9)), tmp_path / "work/epoch_4.pth")
    for folder in (tmp_path / "work", tmp_path / "work/labeling"):
        folder.mkdir(exist_ok=True)
        (folder / "last_checkpoint").write_text(str(tmp_path / "work/epoch_4.pth"))
    out = tmp_path / "labels.json"
    assert generate_labels(cfg, *others, out, date="2020-02-02") == 0
    assert out.read_bytes() == undisturbed
    assert trained.read_text() == "# the training's\n"
    assert "LabelWriter" in (tmp_path / "work/labeling" / trained.name).read_text()


def test_detections_that_change_while_they_are_labeled(tmp_path):
    """As for boxes; the file of the images is the same."""
    boxes, detections = tmp_path / "boxes.json", tmp_path / "results.json"
    write_json(boxes, dict(images=[], annotations=[], categories=[]))
    write_json(detections, [])
    hashes = dict(boxes=file_sha256(boxes), detections=file_sha256(detections))
    files = dict(ann_file=str(boxes), detections=str(detections))
    writer = label_writer.LabelWriter(
        **files, out_file=str(tmp_path / "out.json"), fingerprint=hashes
    )
    detections.write_text("[ ]")
    with pytest.raises(RuntimeError, match=r"results\.json has been changed since labeling began"):
        writer.evaluate(0)
    assert not (tmp_path / "out.json").exists()


def test_boxes_that_change_while_they_are_labeled(job, undisturbed, tmp_path, monkeypatch):
    cfg, checkpoint, boxes, images = job
    mine, out = tmp_path / "boxes.json", tmp_path / "labels.json"
    shutil.copy(boxes, mine)
    merge = label_writer.LabelWriter.compute_metrics

    def change_then_merge(self, results):
        coco = read_coco(mine)
        coco["annotations"].reverse()
        write_json(mine, coco)
        return merge(self, results)

    monkeypatch.setattr(label_writer.LabelWriter, "compute_metrics", change_then_merge)
    with pytest.raises(RuntimeError, match=r"boxes\.json has been changed since labeling began"):
        generate_labels(cfg, checkpoint, mine, images, out, date="2020-02-02")
    assert not out.exists()
    monkeypatch.undo()
    shutil.copy(boxes, mine)
    args = cfg, checkpoint, mine, images, out
    assert generate_labels(*args, date="2020-02-02", resume=True) == 0
    assert out.read_bytes() == undisturbed


class WideBBox(ExpandBBox):
    pass


def test_configs_in_python_hold_classes(job, undisturbed, tmp_path):
    cfg, *others = job
    cfg = copy.deepcopy(cfg)
    cfg.model.type = MaskAutoLabeler
    pipeline = cfg.test_dataloader.dataset.pipeline
    pipeline[0].type = WideBBox  # and may be the user's own
    out = tmp_path / "labels.json"
    assert generate_labels(cfg, *others, out, date="2020-02-02", margins=[0.3]) == 0
    assert out.read_bytes() == undisturbed


def test_a_step_before_the_expansion(job, undisturbed, tmp_path):
    cfg, *others = job
    cfg = copy.deepcopy(cfg)
    cfg.test_dataloader.dataset.pipeline.insert(0, dict(type="RandomChoice", transforms=[[], []]))
    out = tmp_path / "labels.json"
    assert generate_labels(cfg, *others, out, date="2020-02-02", margins=[0.1]) == 0
    assert read_coco(out)["info"]["mal_mmdet"]["margins"] == 0.1
    del cfg.test_dataloader.dataset.pipeline[1]
    with pytest.raises(ValueError, match=r"expected an ExpandBBox among them"):
        generate_labels(cfg, *others, tmp_path / "other.json", margins=[0.1])


def test_several_margins_are_labeled_alike_by_the_config_and_by_the_option(
    job, undisturbed, tmp_path
):
    cfg, *others = job
    option, config = tmp_path / "option.json", tmp_path / "config.json"
    assert generate_labels(*job, option, date="2020-02-02", margins=[0.3, 0.1]) == 0
    cfg = copy.deepcopy(cfg)
    cfg.test_dataloader.dataset.pipeline[0].margin = [0.3, 0.1]
    assert generate_labels(cfg, *others, config, date="2020-02-02") == 0
    assert option.read_bytes() == config.read_bytes()
    several, one = json.loads(option.read_bytes()), json.loads(undisturbed)
    assert several["annotations"] != one["annotations"]
    assert several["info"]["mal_mmdet"]["margins"] == [0.3, 0.1]
    assert one["info"]["mal_mmdet"]["margins"] == 0.3
    again = tmp_path / "again.json"
    assert generate_labels(*job, again, date="2020-02-02", margins=[0.3]) == 0
    assert again.read_bytes() == undisturbed


def test_a_broken_image_costs_its_own_boxes_alone_with_several_margins(job, tmp_path):
    cfg, checkpoint, boxes, images = job
    folder = tmp_path / "images"
    shutil.copytree(images, folder)
    sorted(folder.iterdir())[2].write_bytes(b"no image")
    whole, broken = tmp_path / "whole.json", tmp_path / "broken.json"
    options = dict(date="2020-02-02", margins=[0.3, 0.1])
    assert generate_labels(*job, whole, **options) == 0
    failed = generate_labels(cfg, checkpoint, boxes, folder, broken, **options)
    expected = {ann["id"]: ann for ann in read_coco(whole)["annotations"]}
    labeled = read_coco(broken)["annotations"]
    assert failed > 0 and len(labeled) + failed == len(expected)
    assert all(ann == expected[ann["id"]] for ann in labeled)


def test_only_missing_keeps_human_masks(job, demo, undisturbed, tmp_path):
    cfg, checkpoint, boxes, images = job
    coco, human = read_coco(boxes), read_coco(demo / "instances_train.json")
    kept = {}
    for i, ann in enumerate(coco["annotations"]):
        if i % 3 == 0:
            ann["segmentation"] = human["annotations"][i]["segmentation"]
            kept[ann["id"]] = ann["segmentation"]
    coco["annotations"][0]["source"] = "mal"  # of an earlier labeling: it stays so
    coco["annotations"][1]["segmentation"] = [[]]  # as some tools say that there is none
    coco["annotations"][3]["bbox"][2] = 0  # unusable for labeling, but it has its mask
    del coco["annotations"][6]["bbox"]
    coco["annotations"][0]["area"] = 0  # with which loaders would leave the object out
    write_json(tmp_path / "partly.json", coco)
    out = tmp_path / "labels.json"
    files = cfg, checkpoint, tmp_path / "partly.json", images, out
    assert generate_labels(*files, only_missing=True) == 0
    everywhere = {a["id"]: a["segmentation"] for a in json.loads(undisturbed)["annotations"]}
    differ = 0
    for i, ann in enumerate(read_coco(out)["annotations"]):
        if ann["id"] in kept:
            assert ann["segmentation"] == kept[ann["id"]] and "mask_quality" not in ann
            assert ann["source"] == ("human" if i else "mal")
            assert i or ann["area"] == mask_utils.area(ann["segmentation"]) > 0
        else:
            size = ann["segmentation"]["size"]
            masks = [
                segmentation_to_mask(s, *size) for s in (ann["segmentation"], everywhere[ann["id"]])
            ]
            differ += int((masks[0] ^ masks[1]).sum())
            assert ann["source"] == "mal" and "mask_quality" in ann
    assert differ <= 2  # in batches of another size the last bits of a probability may differ
    report = json.loads((tmp_path / "labels.json.report.json").read_text())
    assert report["labeled"] == len(coco["annotations"]) - len(kept)

    empty = coco["annotations"][9]
    size = kept.pop(empty["id"])["size"]
    empty["segmentation"] = encode_mask(np.zeros(size, dtype=bool))
    write_json(tmp_path / "partly.json", coco)
    files = *files[:-1], tmp_path / "polygons.json"
    assert generate_labels(*files, only_missing=True, mask_format="polygon") == 1
    (failed,) = json.loads((tmp_path / "polygons.json.report.json").read_text())["failed"]
    assert failed["id"] == empty["id"] and failed["problem"] == "its mask has not one pixel"
    assert failed["annotation"]["segmentation"] == empty["segmentation"]
    for ann in read_coco(files[-1])["annotations"]:
        assert isinstance(ann["segmentation"], list)
        if ann["id"] in kept:
            size = kept[ann["id"]]["size"]
            pair = [to_rle(s, *size) for s in (ann["segmentation"], kept[ann["id"]])]
            assert mask_utils.iou(pair[:1], pair[1:], [0])[0, 0] >= 0.98


def test_low_quality(job, undisturbed, tmp_path):
    labels = json.loads(undisturbed)["annotations"]
    qualities = sorted(ann["mask_quality"] for ann in labels)
    limit = qualities[len(qualities) // 3]
    low = {ann["id"] for ann in labels if ann["mask_quality"] < limit}
    assert 0 < len(low) < len(labels)
    files = {}
    for treatment in ("keep", "ignore", "drop"):
        out = tmp_path / f"{treatment}.json"
        generate_labels(*job, out, min_quality=limit, low_quality=treatment)
        files[treatment] = read_coco(out)["annotations"]
        report = json.loads((tmp_path / f"{treatment}.json.report.json").read_text())
        assert report["low_quality"] == len(low) and report["labeled"] == len(labels)
    assert files["keep"] == labels
    assert {ann["id"] for ann in files["ignore"] if ann["iscrowd"]} == low
    assert [ann | dict(iscrowd=0) for ann in files["ignore"]] == labels
    assert files["drop"] == [ann for ann in labels if ann["id"] not in low]


def test_ranks_deal_the_boxes_of_one(job, undisturbed, tmp_path, monkeypatch):
    """Two ranks one after the other, and the merge: the bytes of one rank."""
    out = tmp_path / "labels.json"
    sampler = label_batch_sampler.LabelBatchSampler
    with monkeypatch.context() as patch:
        patch.setattr(label_batch_sampler, "get_dist_info", lambda: (1, 2))
        with pytest.raises(RuntimeError, match="are not in"):
            generate_labels(*job, out, date="2020-02-02")
    monkeypatch.setattr(label_batch_sampler, "get_dist_info", lambda: (0, 2))
    # The two deal at the same moment, before either has written.
    everything = cached_property(lambda self: cut_batches(self.dataset.boxes_per_sample, 3))
    everything.__set_name__(sampler, "unfinished")
    monkeypatch.setattr(sampler, "unfinished", everything)
    assert generate_labels(*job, out, date="2020-02-02", resume=True) == 0
    assert out.read_bytes() == undisturbed


def test_only_the_main_rank_looks_for_finished_shards(job, tmp_path, monkeypatch):
    """A rank that looked for itself would find what a faster one has just finished."""
    told = []

    def broadcast(data):
        told.append(list(data))
        data[0] = {0, 1}

    monkeypatch.setattr(label_batch_sampler, "is_main_process", lambda: False)
    monkeypatch.setattr(label_batch_sampler, "broadcast_object_list", broadcast)
    dataset = SimpleNamespace(boxes_per_sample=np.array([2, 2, 2, 2]))
    sampler = label_batch_sampler.LabelBatchSampler(
        SimpleNamespace(dataset=dataset), 4, shards=str(tmp_path / "not there")
    )
    assert list(sampler) == [[2, 3]] and told == [[None]]


def test_crops_of_any_image_give_the_masks_that_predict_gives(job, undisturbed):
    """What LabelWriter pastes and encodes is what the model itself would put into the image."""
    from mmengine.runner import Runner

    cfg, checkpoint, boxes, images = job
    cfg = cfg.copy()
    cfg.test_dataloader.dataset.dataset.update(ann_file=str(boxes), data_root="")
    cfg.test_dataloader.dataset.dataset.data_prefix = dict(img=str(images))
    runner = Runner.from_cfg(cfg)
    load_weights(runner.model, checkpoint)
    labels = json.loads(undisturbed)["annotations"]
    differ = number = 0
    for batch in runner.test_dataloader:
        for sample in runner.model.test_step(batch):
            pred = sample.pred_instances
            for mask, index in zip(pred.masks.numpy(), pred.ann_indices.tolist()):
                rle = to_rle(labels[index]["segmentation"], *mask.shape)
                full = segmentation_to_mask(rle, *mask.shape)
                differ += int((np.asarray(full, dtype=bool) ^ mask).sum())
                assert encode_mask(full) == labels[index]["segmentation"]
                number += 1
    assert number == len(labels) and differ <= 2


def test_another_folder_of_images_costs_no_labels(job, tmp_path):
    cfg, checkpoint, boxes, _ = job
    (tmp_path / "empty").mkdir()
    (tmp_path / "out.json").write_text("labels of before")
    with pytest.raises(FileNotFoundError, match=r"none of the 8 images .*empty; looked"):
        generate_labels(cfg, checkpoint, boxes, tmp_path / "empty", tmp_path / "out.json")
    assert (tmp_path / "out.json").read_text() == "labels of before"
    assert not shard_folder(tmp_path / "out.json").exists()


def test_no_such_weights(job, tmp_path):
    cfg, _, boxes, images = job
    with pytest.raises(FileNotFoundError, match=r"nothing\.pth does not exist"):
        generate_labels(cfg, tmp_path / "nothing.pth", boxes, images, tmp_path / "out.json")
