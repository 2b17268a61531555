#!/usr/bin/env python
# SPDX-License-Identifier: Apache-2.0
"""Crops per second of one worker of the training data, stage by stage, and how many a GPU takes.

The images are JPEGs made of scikit-image's photographs. The square root of a box's area is drawn
log-uniformly between a tenth and six tenths of the image's shorter side, its ratio of width to
height between 1:2 and 2:1, its place uniformly. All is CPU time of one thread; that of the worker
process, with handing crops over, counts for crops per second.

The plain pipeline does the same with what the libraries have: NumPy's indexing and Pillow for the
crop, mmpretrain's ColorJitter and GaussianBlur, mmcv's RandomGrayscale; and it hands the box over
with both views. The floor is what has to be done: for reading, decoding at an eighth of the scale,
which parses the whole file; for the rest a copy of the crop for each pass over it.
"""

from __future__ import annotations

import argparse
import copy
import resource
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest import mock

import cv2
import mmcv
import numpy as np
import torch
from mmcv.transforms import BaseTransform
from mmdet.registry import DATASETS, MODELS
from mmengine.config import Config, DictAction
from mmengine.dataset import pseudo_collate
from mmengine.registry import init_default_scope
from rich.console import Console
from rich.table import Table
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.data import DataLoader
from torch.utils.flop_counter import FlopCounterMode

from mal_mmdet.datasets import BoxCropDataset, SeededSampler
from mal_mmdet.datasets.demo_dataset import load_photos
from mal_mmdet.datasets.transforms import box_crop
from mal_mmdet.labeling import write_json
from mal_mmdet.progress import track
from mal_mmdet.structures import border_indices, crop_and_resize

PHOTOS = ("astronaut.png", "chelsea.png", "coffee.png", "rocket.jpg", "motorcycle_left.png")
BOXES_PER_IMAGE = 7
TILE = 640, 480  # a larger image is a mosaic of these, so that it has a photograph's detail
QUALITY = 92
STAGES = dict(
    RandomExpandBBox="crop",
    CropBBox="crop",
    RandomFlip="crop",
    RandomApply="colour",
    ColorTransform="colour",
    RandomGrayscale="colour",
    RandomGaussianBlur="blur",
    GaussianBlur="blur",
    PackBoxCrop="pack",
)
ROWS = ("read", *dict.fromkeys(STAGES.values()), "rest", "in all")
PROCESSES = ("worker process", "training process")
# On average half of four changes of colour and a fifth of the one to grey, and half a blur.
PASSES = dict(crop=1, colour=2.2, blur=0.5, pack=2)
REDUCED = {
    8: cv2.IMREAD_REDUCED_COLOR_8,
    4: cv2.IMREAD_REDUCED_COLOR_4,
    2: cv2.IMREAD_REDUCED_COLOR_2,
    1: cv2.IMREAD_COLOR,
}


def make_images(folder: Path, width: int, height: int, files: int, images: int) -> int:
    """Writes ``boxes.json`` of ``images`` images with several boxes, which share the files.

    Returns:
        Bytes of all files.
    """
    rng = np.random.default_rng(0)
    photos = [cv2.resize(photo[..., ::-1], TILE) for photo in load_photos(PHOTOS).values()]
    columns, rows = -(-width // TILE[0]), -(-height // TILE[1])
    for i in range(files):
        tiles = rng.integers(0, len(photos), (rows, columns))
        mosaic = np.vstack([np.hstack([photos[k] for k in row]) for row in tiles])
        quality = [cv2.IMWRITE_JPEG_QUALITY, QUALITY]
        cv2.imwrite(str(folder / f"{i}.jpg"), mosaic[:height, :width], quality)
    coco = dict(images=[], annotations=[], categories=[dict(id=1, name="thing")])
    for i in range(images):
        name = f"{i % files}.jpg"
        coco["images"].append(dict(id=i, file_name=name, width=width, height=height))
        for _ in range(BOXES_PER_IMAGE):
            side = np.exp(rng.uniform(*np.log([0.1, 0.6]))) * min(width, height)
            stretch = np.exp(rng.uniform(*np.log([0.5, 2])) / 2)
            w, h = min(side * stretch, width), min(side / stretch, height)
            bbox = [rng.uniform(0, width - w), rng.uniform(0, height - h), w, h]
            ann = dict(id=len(coco["annotations"]), image_id=i, category_id=1, iscrowd=0)
            coco["annotations"].append(ann | dict(bbox=bbox, area=w * h))
    write_json(folder / "boxes.json", coco)
    return sum(path.stat().st_size for path in folder.glob("*.jpg"))


def plain_crop_and_resize(
    img: np.ndarray, crop_bbox: np.ndarray, size: int, border: str
) -> np.ndarray:
    """:func:`mal_mmdet.structures.crop_and_resize` by NumPy and Pillow."""
    x0, y0, x1, y1 = (int(v) for v in crop_bbox)
    height, width = img.shape[:2]
    if x0 >= 0 and y0 >= 0 and x1 <= width and y1 <= height:
        crop = np.ascontiguousarray(img[y0:y1, x0:x1])
    else:
        rows = border_indices(y0, y1, height, border)
        crop = img[rows[:, None], border_indices(x0, x1, width, border)]
    return mmcv.imresize(crop, (size, size), interpolation="bicubic", backend="pillow")


def plain_transform(step: dict) -> dict:
    """The libraries' counterpart of a step of the pipeline; other steps stay as they are."""
    if step["type"] == "RandomApply":
        return step | dict(transforms=plain_transform(step["transforms"]))
    if step["type"] == "FastColorJitter":
        return step | dict(type="mmpretrain.ColorJitter", backend="cv2")
    if step["type"] == "mmpretrain.ColorTransform":
        weights = (0.114, 0.587, 0.2989)
        grey = dict(type="RandomGrayscale", keep_channels=True, channel_weights=weights)
        return grey | dict(prob=step["prob"])
    if step["type"] == "RandomGaussianBlur":
        blur = dict(type="mmpretrain.GaussianBlur", magnitude_std="inf", prob=step["prob"])
        return blur | dict(magnitude_range=step["sigma"])
    if step["type"] == "PackBoxCrop":
        return dict(type="PackBoxCrop")
    if step["type"] == "MultiBranch":
        branches = {view: [plain_transform(s) for s in step[view]] for view in step.branch_field}
        return step | branches
    return step


class Variant:
    """A way to get crops, with its stages on the clock.

    Args:
        dataset: Config of the data set.
        samples: Pairs of index and seed, in the order of training.
        crop: Function that cuts and resizes.
    """

    def __init__(self, dataset: dict, samples: list, crop: Callable = crop_and_resize) -> None:
        self.dataset: BoxCropDataset = DATASETS.build(dataset)
        self.samples, self.crop = samples, crop
        self.seconds: dict[str, float] = defaultdict(float)
        self.dataset._load = self.timed("read", self.dataset._load)
        for transform in _steps(self.dataset):
            stage = STAGES.get(type(transform).__name__)
            if stage:
                transform.transform = self.timed(stage, transform.transform)

    def timed(self, stage: str, function: Callable) -> Callable:
        def call(*args):
            start = time.thread_time()
            result = function(*args)
            self.seconds[stage] += time.thread_time() - start
            return result

        return call

    def run(self) -> dict[str, float]:
        """Milliseconds a crop of each stage."""
        self.seconds.clear()
        self.dataset._read = (-1, {})  # the last image of the run before
        start = time.thread_time()
        with mock.patch.object(box_crop, "crop_and_resize", self.crop):
            for sample in self.samples:
                self.dataset[sample]
        self.seconds["in all"] = time.thread_time() - start
        spent = {stage: 1e3 * s / len(self.samples) for stage, s in self.seconds.items()}
        return spent | dict(rest=2 * spent["in all"] - sum(spent.values()))


def _steps(dataset: BoxCropDataset) -> Iterator[BaseTransform]:
    for transform in dataset.pipeline.transforms:
        branches = getattr(transform, "branch_pipelines", None)
        if branches is None:
            yield transform
        else:
            for branch in branches.values():
                yield from branch.transforms


def run_reduced(variant: Variant) -> dict[str, float]:
    """Milliseconds of reading and cropping where an image is decoded at 1/2, 1/4 or 1/8.

    That is done where the crop still has all pixels that it needs in both directions. The crop is
    rounded outward to whole pixels of the smaller image.
    """
    size = variant.dataset.pipeline.transforms[1].size
    spent = dict(read=0.0, crop=0.0)
    for index, seed in variant.samples:
        sample = variant.dataset[index, seed]["data_samples"]["student"]
        box = sample.gt_instances.crop_bboxes[0].numpy()
        scale = next(k for k in REDUCED if k == 1 or min(box[2:] - box[:2]) >= k * size)
        start = time.thread_time()
        content = np.frombuffer(Path(sample.img_path).read_bytes(), np.uint8)
        img = cv2.imdecode(content, REDUCED[scale])
        read = time.thread_time()
        crop_and_resize(img, np.concatenate([box[:2] // scale, -(-box[2:] // scale)]), size)
        spent["read"] += 1e3 * (read - start) / len(variant.samples)
        spent["crop"] += 1e3 * (time.thread_time() - read) / len(variant.samples)
    return spent


def run_floor(folder: Path, size: int) -> dict[str, float]:
    """Milliseconds that each stage takes at least."""
    paths = list(folder.glob("*.jpg"))
    start = time.thread_time()
    for path in paths:
        cv2.imdecode(np.frombuffer(path.read_bytes(), np.uint8), REDUCED[8])
    read = (time.thread_time() - start) / len(paths)
    crop, out = np.ones((2, size, size, 3), dtype=np.uint8)
    start = time.thread_time()
    for _ in range(20):
        np.copyto(out, crop)
    copied = (time.thread_time() - start) / 20
    floor = dict(read=1e3 * read) | {stage: 1e3 * copied * n for stage, n in PASSES.items()}
    return floor | {"in all": sum(floor.values())}


def benchmark(cfg: Config, folder: Path, crops: int, repeats: int) -> dict[str, dict]:
    """Medians over runs in turn, after one that does not count.

    Returns:
        For each variant the milliseconds a crop of each stage.
    """
    ours = cfg.train_dataloader.dataset
    plain, turbo = copy.deepcopy(ours), copy.deepcopy(ours)
    plain.pipeline = [plain_transform(step) for step in plain.pipeline]
    turbo.dataset.pipeline[0].imdecode_backend = "turbojpeg"
    boxes = DATASETS.build(ours)
    orders = [
        list(SeededSampler(boxes, seed=0, boxes_per_image=k))[:crops] for k in (1, BOXES_PER_IMAGE)
    ]
    variants = {
        "plain": Variant(plain, orders[0], plain_crop_and_resize),
        "ours": Variant(ours, orders[0]),
        "image read once": Variant(ours, orders[1]),
    }
    try:
        mmcv.use_backend("turbojpeg")  # finds the library; its own use is asked for by the config
        variants["turbojpeg"] = Variant(turbo, orders[0])
    except (ImportError, RuntimeError) as error:
        print(f"turbojpeg is left out: {error}")
    finally:
        mmcv.use_backend("cv2")  # also where the library is missing, mmcv has set it
    functions = {name: variant.run for name, variant in variants.items()}
    functions["reduced scale"] = lambda: run_reduced(variants["ours"])
    functions["floor"] = lambda: run_floor(folder, ours.pipeline[1].size)
    runs: dict[str, list[dict]] = defaultdict(list)
    for _ in track(range(repeats + 1), "measuring", "runs"):
        for name, function in functions.items():
            runs[name].append(function())
            if name in variants:
                loaded = run_loader(variants[name], cfg.train_dataloader.batch_size)
                runs[name][-1].update(loaded)
    figures = {
        name: {row: statistics.median(run[row] for run in found[1:]) for row in found[0]}
        for name, found in runs.items()
    }
    # What is not read or cropped is not touched by the scale.
    reduced, same = figures["reduced scale"], figures["ours"]
    saved = sum(same[row] - reduced[row] for row in ("read", "crop"))
    lower = {row: same[row] - saved for row in ("in all", "worker process")}
    figures["reduced scale"] = same | reduced | lower
    return figures


def run_loader(variant: Variant, batch_size: int) -> dict[str, float]:
    """CPU milliseconds a crop of a worker process, and of the process that it hands crops to."""
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.process_time()
    loader = DataLoader(
        variant.dataset,
        batch_size,
        sampler=variant.samples,
        num_workers=1,
        collate_fn=pseudo_collate,
    )
    for _ in loader:
        pass
    received = time.process_time() - start
    del loader
    after = resource.getrusage(resource.RUSAGE_CHILDREN)  # counts once the worker has ended
    worker = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    count = len(variant.samples)
    return {"worker process": 1e3 * worker / count, "training process": 1e3 * received / count}


def step_teraflops(cfg: Config) -> float:
    """TFLOP a crop of a training step: the teacher's forward, the student's and twice that back."""
    cfg.model.network.pop("init_cfg", None)
    model = MODELS.build(cfg.model)
    size = cfg.train_dataloader.dataset.pipeline[1].size
    # Fused attention on a CPU is not counted.
    with FlopCounterMode(display=False) as counter, torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        model.student(torch.zeros(1, 3, size, size), torch.tensor([1e4]))
    return 4 * counter.get_total_flops() / 1e12


def _size(text: str) -> tuple[int, int]:
    width, height = map(int, text.split("x"))
    return width, height


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("config", help="config of phase 1")
    parser.add_argument("--sizes", type=_size, nargs="+", default=[(640, 480), (4000, 3000)])
    parser.add_argument("--files", type=int, default=8, help="JPEGs (default: %(default)s)")
    parser.add_argument("--images", type=int, default=100, help="that share the files")
    parser.add_argument("--crops", type=int, default=56, help="in a run (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=5, help="default: %(default)s")
    parser.add_argument(
        "--tflops",
        type=float,
        nargs="+",
        default=[396, 50],
        help="that a GPU keeps up; 40 %% of what an H100 and a V100 do at most, if not given",
    )
    parser.add_argument("--out", help="JSON file for the figures")
    parser.add_argument("--cfg-options", nargs="+", action=DictAction, help="override the config")
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    cv2.setNumThreads(0)  # a worker has one thread
    torch.set_num_threads(1)
    init_default_scope("mmdet")
    cfg = Config.fromfile(args.config)
    cfg.merge_from_dict(args.cfg_options or {})
    console = Console()
    teraflops = step_teraflops(cfg)
    figures = dict(step_teraflops=teraflops, sizes={})
    for width, height in args.sizes:
        with tempfile.TemporaryDirectory() as name:
            total = make_images(Path(name), width, height, args.files, args.images)
            wrapped = cfg.train_dataloader.dataset.dataset
            wrapped.update(data_root=name, ann_file="boxes.json", data_prefix=dict(img=""))
            found = benchmark(cfg, Path(name), args.crops, args.repeats)
        kilobytes = total / args.files / 1e3
        title = f"{width} × {height}, {kilobytes:.0f} kB: CPU milliseconds a crop"
        table = Table("", *found, title=title)
        for row in (*ROWS, *PROCESSES):
            cells = (f"{column[row]:.2f}" if row in column else "" for column in found.values())
            table.add_row(row, *cells, end_section=row == "in all")
        rates = [1e3 / column.get("worker process", column["in all"]) for column in found.values()]
        table.add_row("crops/s of a worker", *(f"{rate:.0f}" for rate in rates))
        for tflops in args.tflops:
            cells = (f"{tflops / teraflops / rate:.1f}" for rate in rates)
            table.add_row(f"workers at {tflops:g} TFLOP/s", *cells)
        console.print(table)
        figures["sizes"][f"{width}x{height}"] = dict(ms=found, kilobytes=kilobytes)
    takes = ", ".join(f"{t / teraflops:.0f} at {t:.0f} TFLOP/s" for t in args.tflops)
    console.print(f"the network takes {teraflops:.2f} TFLOP a crop: crops/s are {takes}")
    if args.out:
        write_json(args.out, figures, 1)


if __name__ == "__main__":
    main()
