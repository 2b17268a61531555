#!/usr/bin/env python
# SPDX-License-Identifier: Apache-2.0
"""Boxes per second of labeling, stage by stage, beside a plain pipeline that does the same.

The images are made up: smooth noise with boxes of random sizes. The plain pipeline takes a box at a
time: it reads the image, crops, predicts in the same batches, pastes the mask into a float image of
full size, and encodes that. Both run in this process, one after the other, with the same weights,
and have to find the same masks. The plain one predicts in float32 unless told otherwise. Several
processes, which torch.distributed.run starts with --launcher pytorch, share the labeling; the times
are then those of the slowest. The plain pipeline is the first's, on a CPU with the threads of all.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from benchmark_mean_field import now
from mmengine import dist
from mmengine.config import Config, DictAction
from mmengine.runner import Runner
from pycocotools import mask as mask_utils
from rich.console import Console
from rich.table import Table
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from mal_mmdet.apis import load_weights, set_launcher, use_boxes, use_one_crop
from mal_mmdet.apis.launch import unwrapped
from mal_mmdet.datasets import BoxCropDataset
from mal_mmdet.labeling import (
    LabelShards,
    read_coco,
    shard_folder,
    threshold_for_area,
    write_json,
)
from mal_mmdet.labeling import label_writer as writer_module
from mal_mmdet.labeling import paste as paste_module
from mal_mmdet.models import MaskAutoLabeler
from mal_mmdet.models import mask_auto_labeler as model_module
from mal_mmdet.models.mask_auto_labeler import PREDICT_DTYPES, boxes_in_crops
from mal_mmdet.progress import track

FILES = 50  # that images share, so that many can be made quickly; each is read all the same
IOU_OF_SAME = 0.99  # both resize alike but for the last bits
TIMEOUT = 24 * 60 * 60  # seconds that other processes wait for the plain pipeline


class Stopwatch:
    """Seconds by stage; those of a GPU are its own, for which nothing waits until the end."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self.events: list[tuple[str, torch.cuda.Event, torch.cuda.Event]] = []

    def timed(self, stage: str, function: Callable) -> Callable:
        def call(*args, **kwargs):
            start = time.perf_counter()
            result = function(*args, **kwargs)
            self.seconds[stage] += time.perf_counter() - start
            return result

        return call

    def timed_on_device(self, stage: str, function: Callable) -> Callable:
        if not torch.cuda.is_available():
            return self.timed(stage, function)

        def call(*args, **kwargs):
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            result = function(*args, **kwargs)
            end.record()
            self.events.append((stage, start, end))
            return result

        return call

    def finish(self) -> dict[str, float]:
        """All seconds, once the GPU is done."""
        now()
        for stage, start, end in self.events:
            self.seconds[stage] += start.elapsed_time(end) / 1e3
        self.events.clear()
        return self.seconds


def make_images(boxes_file: Path, number: int, boxes: int, width: int, height: int) -> None:
    """Writes a file of boxes, whose sides are 40 to 400 pixels, and beside it JPEG images."""
    rng = np.random.default_rng(0)
    coco = dict(images=[], annotations=[], categories=[dict(id=1, name="thing")])
    for i in range(min(number, FILES)):
        noise = rng.integers(0, 256, (height // 40 + 1, width // 40 + 1, 3), dtype=np.uint8)
        img = cv2.resize(noise, (width, height), interpolation=cv2.INTER_CUBIC)
        cv2.imwrite(str(boxes_file.with_name(f"{i}.jpg")), img)
    for i in range(number):
        name = f"{i % FILES}.jpg"
        coco["images"].append(dict(id=i, file_name=name, width=width, height=height))
        for _ in range(boxes):
            w, h = rng.integers(40, 400, 2).clip(max=[width, height]).tolist()
            x, y = int(rng.integers(0, width - w + 1)), int(rng.integers(0, height - h + 1))
            coco["annotations"].append(
                dict(
                    id=len(coco["annotations"]),
                    image_id=i,
                    category_id=1,
                    bbox=[x, y, w, h],
                    area=w * h,
                    iscrowd=0,
                )
            )
    write_json(boxes_file, coco)


def build(args: argparse.Namespace, folder: Path, boxes: Path) -> tuple[Runner, Path]:
    """The runner that generate_labels would use, and the label file."""
    cfg = Config.fromfile(args.config)
    cfg.merge_from_dict(args.cfg_options or {})
    cfg.work_dir, cfg.log_level = str(folder / "work"), "WARNING"
    use_boxes(cfg, boxes, folder)
    use_one_crop(cfg)
    cfg.model.update(paste_masks=False, predict_dtype=args.dtype)
    out = folder / "labels.json"
    loader = cfg.test_dataloader
    loader.num_workers = args.workers
    loader.persistent_workers = False
    loader.batch_size = cfg.model.get("crops_per_batch", 32)
    loader.pin_memory = torch.cuda.is_available()
    loader.batch_sampler = dict(type="LabelBatchSampler", shards=str(shard_folder(out)))
    cfg.test_evaluator = dict(type="LabelWriter", ann_file=str(boxes), out_file=str(out))
    cfg.custom_hooks = []
    set_launcher(cfg, args.launcher, TIMEOUT)
    runner = Runner.from_cfg(cfg)
    if args.checkpoint:
        load_weights(runner.model, args.checkpoint)
    runner.model.eval()
    return runner, out


def label(runner: Runner, watch: Stopwatch) -> None:
    """What the runner's test loop does, with the stages of this process on the clock.

    With ``--workers 0`` reading and cropping are in this process too; in threads, pasting and
    encoding are seconds of the threads, that pass while the network is at work.
    """
    loop = runner.test_loop
    model, dataset = unwrapped(runner.model), loop.dataloader.dataset
    runner.call_hook("before_run")  # writes the config down; not part of labeling
    dist.barrier()
    dataset._load = watch.timed("read", dataset._load)
    pipeline = dataset.pipeline
    dataset.pipeline = watch.timed("crop", pipeline)
    model.view_logits = watch.timed_on_device("network", model.view_logits)
    quality, refine = model_module.mask_quality, model_module.refine_logits
    model_module.mask_quality = watch.timed_on_device("quality", quality)
    model_module.refine_logits = watch.timed_on_device("refine", refine)
    originals = paste_module.mask_window, writer_module.encode_window
    paste_module.mask_window = _thread_timed(watch, "paste", originals[0])
    writer_module.encode_window = _thread_timed(watch, "encode", originals[1])
    write = LabelShards.write
    LabelShards.write = watch.timed("write", write)
    try:
        watch.timed("in all", loop.run)()
    finally:
        paste_module.mask_window, writer_module.encode_window = originals
        LabelShards.write = write
        model_module.mask_quality, model_module.refine_logits = quality, refine
        del dataset._load, model.view_logits
        dataset.pipeline = pipeline


def _thread_timed(watch: Stopwatch, stage: str, function: Callable) -> Callable:
    lock = threading.Lock()

    def call(*args):
        start = time.thread_time()
        result = function(*args)
        with lock:
            watch.seconds[stage] += time.thread_time() - start
        return result

    return call


@torch.no_grad()
def label_plainly(
    model: MaskAutoLabeler, dataset: BoxCropDataset, watch: Stopwatch
) -> dict[int, dict]:
    """The plain pipeline, a sample a box; returns RLEs by the index of their annotation."""
    rles, size = {}, model.crops_per_batch
    read, crop = watch.timed("read", dataset._load), watch.timed("crop", dataset.pipeline)
    predict = watch.timed_on_device("network", model.mask_logits)
    refine = watch.timed_on_device("refine", model_module.refine_logits)

    def finish(samples: list[dict]) -> None:
        data = dict(
            inputs=[sample["inputs"][None] for sample in samples],
            data_samples=[sample["data_samples"] for sample in samples],
        )
        data = model.data_preprocessor(data)
        crops, samples = data["inputs"], data["data_samples"]
        areas = torch.cat([s.gt_instances.areas for s in samples])
        thresholds = [threshold_for_area(model.thresholds, area) for area in areas.tolist()]
        logits = predict(crops, areas)
        if model.refine_test:
            limits = torch.tensor(thresholds, device=logits.device)
            cells = (boxes_in_crops(samples) * logits.shape[-1]).to(logits.device)
            field = model.crf_loss.mean_field_cfg
            logits = refine(logits, limits, cells, crops, model.color_weight, **field)
        logits = F.interpolate(logits[:, None], crops.shape[2:], mode="bilinear")
        for prob, sample, threshold in zip(logits.sigmoid().cpu(), samples, thresholds):
            index = int(sample.gt_instances.ann_indices[0])
            full = watch.timed("paste", paste)(prob, sample)
            mask = full > threshold
            if not mask.any():
                mask = full >= full.max() / 2
            rles[index] = watch.timed("encode", encode)(mask)

    def paste(prob: torch.Tensor, sample) -> np.ndarray:
        height, width = sample.ori_shape
        full = np.zeros((height, width), dtype=np.float32)
        x0, y0, x1, y1 = (int(v) for v in sample.gt_instances.crop_bboxes[0])
        resized = F.interpolate(prob[None], (y1 - y0, x1 - x0), mode="bilinear")[0, 0].numpy()
        a, b, c, d = (round(float(v)) for v in sample.gt_instances.ori_bboxes[0])
        full[b:d, a:c] = resized[b - y0 : d - y0, a - x0 : c - x0]
        return full

    def encode(mask: np.ndarray) -> dict:
        return mask_utils.encode(np.asfortranarray(mask, dtype=np.uint8))

    start, samples = now(), []
    for image, instance in dataset.boxes:
        results = read(image)
        samples.append(crop(dataset._box_results(results, instance)))
        if len(samples) == size:
            finish(samples)
            samples = []
    if samples:
        finish(samples)
    watch.seconds["in all"] += now() - start
    return rles


def compare(out: Path, rles: dict[int, dict]) -> float:
    """Mean IoU of the masks of the two pipelines."""
    labels = [ann["segmentation"] for ann in read_coco(out)["annotations"]]
    if len(labels) != len(rles):
        raise RuntimeError(f"{len(labels)} of {len(rles)} boxes were labeled")
    return float(np.mean([mask_utils.iou([a], [rles[i]], [0]) for i, a in enumerate(labels)]))


@torch.no_grad()
def teraflops(model: MaskAutoLabeler, seconds_per_box: float) -> tuple[float, float]:
    """TFLOP/s of the network on a box, and what the machine reaches."""
    parameter = next(model.parameters())
    side = model.student.backbone.img_size[0]
    crop = torch.zeros(1, 3, side, side, device=parameter.device)
    # Fused attention is not counted on every device.
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        model.mask_logits(crop, torch.tensor([1e4]))
    reached = counter.get_total_flops() / seconds_per_box / 1e12
    return reached, matmul_rate(parameter.device, model.predict_dtype)


def matmul_rate(device: torch.device | str, dtype: torch.dtype = torch.float32) -> float:
    """TFLOP/s of the fastest of ten large products of matrices."""
    large = 2048 if torch.device(device).type == "cpu" else 8192
    matrix = torch.randn(large, large, device=device, dtype=dtype)
    times = []
    for _ in range(10):
        start = now()
        matrix @ matrix
        times.append(now() - start)
    return 2 * large**3 / min(times) / 1e12


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("config", help="config of a MaskAutoLabeler")
    parser.add_argument("checkpoint", nargs="?", help="weights (default: at random)")
    parser.add_argument("--images", type=int, default=10, help="default: %(default)s")
    parser.add_argument("--boxes", type=int, default=20, help="an image (default: %(default)s)")
    parser.add_argument(
        "--size", type=int, nargs=2, default=[1920, 1080], metavar=("WIDTH", "HEIGHT")
    )
    parser.add_argument("--workers", type=int, default=0, help="of the loader (default: 0)")
    parser.add_argument("--repeats", type=int, default=3, help="default: %(default)s")
    parser.add_argument(
        "--dtype",
        default="float32",
        choices=PREDICT_DTYPES,
        help="to predict in (default: %(default)s)",
    )
    parser.add_argument(
        "--plain-dtype",
        default="float32",
        choices=PREDICT_DTYPES,
        help="what the plain pipeline predicts in (default: %(default)s)",
    )
    parser.add_argument("--no-reference", action="store_true", help="leave the plain one out")
    parser.add_argument("--launcher", choices=["none", "pytorch"], default="none")
    parser.add_argument("--out", help="JSON file for the figures")
    parser.add_argument("--cfg-options", nargs="+", action=DictAction, help="override the config")
    return parser.parse_args()


def join(launcher: str) -> None:
    """Joins the other processes, if there are any."""
    set_launcher(Config(), launcher, TIMEOUT)
    if launcher != "none" and not dist.is_distributed():
        dist.init_dist(launcher, timeout=TIMEOUT)


def of_slowest(seconds: dict[str, float]) -> dict[str, float]:
    """The seconds of the process that took longest in all."""
    return max(dist.all_gather_object(dict(seconds)), key=lambda found: found["in all"])


def shared_folder(name: str) -> Path:
    """The folder that the first process names, for all."""
    names = [name]
    dist.broadcast_object_list(names)
    return Path(names[0])


def main() -> None:
    args = parse_args()
    join(args.launcher)
    first = dist.is_main_process()
    threads = torch.get_num_threads()
    ours, plain = [], []
    with tempfile.TemporaryDirectory() if first else nullcontext("") as name:
        folder = shared_folder(name)
        boxes = folder / "boxes.json"
        if first:
            make_images(boxes, args.images, args.boxes, *args.size)
        dist.barrier()
        for i in track(range(args.repeats + 1), "measuring", "runs"):  # the first warms up
            runner, out = build(args, folder, boxes)
            model = unwrapped(runner.model)
            reference = copy.deepcopy(model)
            reference.predict_dtype = getattr(torch, args.plain_dtype)
            for network in (reference, model):
                network.cast_networks()  # as labeling does
            watch = Stopwatch()
            label(runner, watch)
            ours.append(of_slowest(watch.finish()))
            if first and not args.no_reference:
                torch.set_num_threads(threads * dist.get_world_size())
                watch = Stopwatch()
                rles = label_plainly(reference, runner.test_dataloader.dataset, watch)
                plain.append(watch.finish())
                torch.set_num_threads(threads)
                if i == 0:
                    iou = compare(out, rles)
                    if iou < IOU_OF_SAME:
                        raise RuntimeError(f"the pipelines disagree: mean IoU is {iou:.3f}")
            dist.barrier()  # nobody builds the next runner beside the plain pipeline
    if first:
        torch.set_num_threads(threads * dist.get_world_size())
        report(args, model, ours, plain)


def report(
    args: argparse.Namespace, model: MaskAutoLabeler, ours: list[dict], plain: list[dict]
) -> None:
    """Prints medians of the runs, the first left out, and writes them to ``args.out``."""
    number = args.images * args.boxes
    table = Table("ms a box (median of runs)", "labeling", *(["plain"] if plain else []))
    stages = ["read", "crop", "network", "quality", "refine", "paste", "encode", "write", "in all"]
    medians = [
        {s: statistics.median(run.get(s, 0.0) for run in runs[1:]) / number for s in stages}
        for runs in (ours, plain)
        if runs
    ]
    for stage in stages:
        table.add_row(stage, *(f"{1e3 * column[stage]:.2f}" for column in medians))
    table.add_row("boxes/s", *(f"{1 / column['in all']:.1f}" for column in medians))
    shares = [1 - column["network"] / column["in all"] for column in medians]
    table.add_row("all but the network", *(f"{share:.1%}" for share in shares))
    console = Console()
    console.print(table)
    if plain:
        console.print(f"ratio: {medians[1]['in all'] / medians[0]['in all']:.2f}")
    reached, peak = teraflops(model, medians[0]["network"])
    if torch.cuda.is_available():
        peak *= dist.get_world_size()  # each process has a GPU of its own
    console.print(f"network: {reached:.3g} of {peak:.3g} TFLOP/s, {reached / peak:.0%}")
    if args.out:
        seconds = dict(zip(("labeling", "plain"), medians))
        figures = dict(boxes=number, network_tflops=reached, peak_tflops=peak)
        write_json(args.out, figures | dict(seconds_per_box=seconds), 1)


if __name__ == "__main__":
    main()
