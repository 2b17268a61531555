# SPDX-License-Identifier: Apache-2.0
"""Trains any stock detector on a label file: data sets, classes and heads of its config."""

from __future__ import annotations

import copy
import logging
import os.path as osp
from collections.abc import Iterator, Sequence
from inspect import signature
from pathlib import Path
from typing import Any

from mmdet.datasets import (
    CocoDataset,
    CocoPanopticDataset,
    DSDLDetDataset,
    LVISV1Dataset,
    XMLDataset,
)
from mmdet.registry import DATASETS
from mmdet.visualization import get_palette
from mmengine.config import Config, ConfigDict
from mmengine.dataset import BaseDataset
from mmengine.fileio import exists, list_from_file
from mmengine.logging import print_log

from mal_mmdet.datasets import BoxCropDataset, MaskQualityDataset
from mal_mmdet.labeling import has_mask, image_size, open_coco
from mal_mmdet.labeling.coco_file import image_problem, is_bbox, is_finite
from mal_mmdet.labeling.polygons import mask_problem
from mal_mmdet.progress import track

from .launch import class_of

# Parts of a model whose classes are not the data set's: object or not, stuff, ImageNet's.
OTHER_CLASSES = {"rpn_head", "semantic_head", "backbone"}
IMAGES_LOOKED_AT = 10
OTHER_FORMATS = (DSDLDetDataset, XMLDataset)  # of boxes and classes; a label file replaces them too
# What such a data set says that is not about its format.
COMMON = {*signature(BaseDataset).parameters, "backend_args", "return_classes", "_scope_"}
COCO_URL = "http://images.cocodataset.org/"  # what LVISV1Dataset takes off an address


def use_labels(
    cfg: Config,
    train_labels: str | Path,
    *,
    val_labels: str | Path | None = None,
    data_root: str | Path | None = None,
    img_dir: str | Path | None = None,
    val_img_dir: str | Path | None = None,
) -> None:
    """Lets a config of MMDetection train on a label file, in place.

    Classes are the file's categories, in the file's order, and every head gets their number. The
    config's own validation stays if its classes are the same and its file exists; otherwise
    training goes without, and the test is left as it was, for its pipeline.

    Args:
        cfg: An instance segmentation (or box) config whose data set reads COCO files, DSDL or
            VOC's XML.
        train_labels: COCO file with masks, such as ``tools/generate_labels.py`` writes.
        val_labels: COCO file to validate and test with; its categories are the same.
        data_root: Takes the place of the config's ``data_root``, under which its
            ``data_prefix`` names the folders of images.
        img_dir: Folder of the training images, in place of what ``data_prefix`` names.
        val_img_dir: Likewise, of the images of ``val_labels``.

    Raises:
        FileNotFoundError: No such label file.
        ValueError: Config and label file do not go together; says what to do.
    """
    coco = _read(train_labels)
    classes = tuple(category["name"] for category in coco["categories"])
    if cfg.get("train_dataloader") is None or cfg.get("model") is None:
        raise ValueError("the config has no model or no train_dataloader: it trains no detector")
    if "source_ratio" in (cfg.train_dataloader.get("sampler") or {}):
        raise ValueError(
            f"the config's sampler is a {cfg.train_dataloader.sampler.type}, which mixes several "
            "data sets, as semi-supervised trainings need; one label file takes the place of all: "
            "take the config of a supervised detector"
        )
    dataset = innermost_dataset(cfg.train_dataloader.dataset)
    _swap(dataset, train_labels, classes, data_root, img_dir)
    _check_images(dataset, train_labels, coco, _folder_advice(dataset, "--img-dir"))
    if missing := _missing_semantic_maps(cfg, dataset):
        _leave_out_semantic_branch(cfg, dataset, missing)
    steps = dict(train_dataloader=cfg.train_dataloader, custom_hooks=cfg.get("custom_hooks"))
    _check_annotations(train_labels, coco, *_mask_loading(steps))
    set_num_classes(cfg.model, len(classes))
    if val_labels is not None:
        _validate_on(cfg, val_labels, classes, data_root, val_img_dir)
    else:
        _keep_validation(cfg, train_labels, classes, data_root)


def check_labels(cfg: Config) -> None:
    """Refuses a detector's config that does not fit the label file it names, before it trains.

    MMDetection itself would drop what does not fit without a word. Only data sets that read COCO
    files of instances are looked at; those of phase 1 check their own.

    Raises:
        FileNotFoundError: No such label file.
        ValueError: Its categories, images or masks are not those that the config needs; says what
            to do.
    """
    loader = cfg.get("train_dataloader") or {}
    kind = class_of(loader.dataset, DATASETS) if loader.get("dataset") else None
    if isinstance(kind, type) and issubclass(kind, BoxCropDataset):
        return  # of phase 1, which looks at boxes alone, itself
    found = [part for part in _parts(loader) if _reads_local_coco(part[1])]
    files = [osp.join(dataset.get("data_root") or "", dataset.ann_file) for _, dataset in found]
    # Of several files that are mixed, one may be without annotations.
    labeled = [open_coco(file) if len(files) > 1 else _read(file) for file in files]
    for (path, dataset), labels, coco in zip(found, files, labeled):
        if not len(coco["annotations"]):
            continue
        instead = f"train with --train-labels {labels}"
        _check_classes(_classes(dataset), coco, labels, instead)
        advice = f"Set data_root and data_prefix.img in the config, or {instead} --img-dir FOLDER"
        _check_images(dataset, labels, coco, advice)
        steps = {f"train_dataloader.{path}": dataset, "custom_hooks": cfg.get("custom_hooks")}
        _check_annotations(labels, coco, *_mask_loading(steps))
        if missing := _missing_semantic_maps(cfg, dataset):
            raise ValueError(
                f"the config also learns from semantic maps, and there is no folder {missing}: set "
                f"data_prefix.seg, or {instead}, which leaves that branch out"
            )
    if found and cfg.get("model"):
        _check_heads(cfg.model, _classes(found[0][1]), files[0])


def _reads_local_coco(dataset: ConfigDict) -> bool:
    if "ann_file" not in dataset or "type" not in dataset:
        return False
    kind = class_of(dataset, DATASETS)
    if kind is None or not issubclass(kind, CocoDataset) or issubclass(kind, CocoPanopticDataset):
        return False
    remote = any("://" in str(dataset.get(key) or "") for key in ("data_root", "ann_file"))
    return not remote and not dataset.get("backend_args")


def _check_classes(
    classes: tuple[str, ...], coco: dict[str, Any], labels: str | Path, instead: str
) -> None:
    names = [category["name"] for category in coco["categories"]]
    missing = [name for name in classes if name not in names]
    if missing:
        raise ValueError(
            f"{len(missing)} of the config's {len(classes)} classes are no categories of {labels}, "
            f"{missing[0]!r} for one; its first category is {names[0]!r}. To learn the file's "
            f"categories, {instead}"
        )
    unknown = [name for name in names if name not in classes]
    if classes and unknown:
        raise ValueError(
            f"{len(unknown)} categories of {labels} are no classes of the config, {unknown[0]!r} "
            f"for one: MMDetection would leave their objects out without a word. To learn them, "
            f"{instead}; or take them out of the file"
        )
    known = tuple(names)
    if classes and known != classes:
        raise ValueError(
            f"{labels} has the config's classes in another order: {_differences(known, classes)}. "
            "MMDetection numbers classes in the order of the file, so each would be called by "
            f"another's name. Order metainfo.classes like the file, or {instead}"
        )


def _check_heads(model: ConfigDict, classes: tuple[str, ...], labels: str | Path) -> None:
    expected = copy.deepcopy(model)
    set_num_classes(expected, len(classes))
    for (path, part), (_, right) in zip(_parts(model), _parts(expected)):
        for key in ("num_classes", "num_things_classes"):
            if part.get(key) != right.get(key):
                raise ValueError(
                    f"model.{path}.{key} is {part[key]}, but {labels} has {len(classes)} classes: "
                    "set it, or train with --train-labels, which does"
                )


def innermost_dataset(dataset: ConfigDict) -> ConfigDict:
    """The data set that reads a file, inside of whatever repeats, mixes or balances it.

    Of a ``ConcatDataset`` only one part is left, since one file takes the place of all: the first
    that reads COCO's instances, else the first that reads DSDL or VOC's XML.

    Raises:
        ValueError: It reads something else.
    """
    while "dataset" in dataset or "datasets" in dataset:
        if "datasets" in dataset:
            dataset.datasets = sorted(dataset.datasets, key=_distance)[:1]
            dataset = dataset.datasets[0]
        else:
            dataset = dataset.dataset
    kind = class_of(dataset, DATASETS)
    if kind is None or not issubclass(kind, (CocoDataset, *OTHER_FORMATS)):
        raise ValueError(
            f"the config's data set is a {dataset.type}; a label file takes the place of one that "
            "reads instances from COCO's files, DSDL or VOC's XML, as detectors' configs have"
        )
    if issubclass(kind, CocoPanopticDataset):
        raise ValueError(
            f"the config's data set is a {dataset.type}, for panoptic segmentation; a label file "
            "has instances alone: take a config for instance segmentation, such as "
            "mmdet::mask2former/mask2former_r50_8xb2-lsj-50e_coco.py"
        )
    return dataset


def _distance(dataset: ConfigDict) -> int:
    """How far a data set is from one that reads COCO's instances: 0 to 2."""
    try:
        kind = class_of(innermost_dataset(copy.deepcopy(dataset)), DATASETS)
    except ValueError:
        return 2
    return int(issubclass(kind, OTHER_FORMATS))


def set_num_classes(model: ConfigDict, count: int) -> None:
    """Sets the number of classes in every head that tells them apart, in place.

    Those are all ``num_classes`` outside of RPN, semantic branches and backbone, MaskFormer's
    ``num_things_classes``, and the class weights of losses that have one for each class.

    Raises:
        ValueError: Classes have different weights, of which nobody knows the new classes'.
    """
    for path, part in _parts(model):
        if OTHER_CLASSES.intersection(path.split(".")):
            continue
        before = part.get("num_classes", part.get("num_things_classes"))
        if not isinstance(before, int):
            continue
        before += part.get("num_stuff_classes", 0)
        for key in ("num_classes", "num_things_classes"):
            if key in part:
                part[key] = count
        if "num_stuff_classes" in part:
            part.num_stuff_classes = 0
        weights = part.get("loss_cls", {}).get("class_weight")
        # One more than classes: the last is the background's.
        if isinstance(weights, (list, tuple)) and len(weights) == before + 1:
            if count != before and len(set(weights[:-1])) > 1:
                raise ValueError(
                    f"model.{path}.loss_cls.class_weight has a weight of its own for each of "
                    f"{before} classes, but the label file has {count}: make them equal"
                )
            if count != before:
                part.loss_cls.class_weight = [weights[0]] * count + [weights[-1]]


def _read(labels: str | Path) -> dict[str, Any]:
    coco = open_coco(labels)
    for key in ("images", "annotations", "categories"):
        if not len(coco[key]):
            raise ValueError(f"{labels} has no {key}: nothing can be learned from it")
    return coco


def _parts(node: Any, path: str = "") -> Iterator[tuple[str, ConfigDict]]:
    """All dicts of a config, each before its own parts, with the keys that lead there."""
    if isinstance(node, dict):
        yield path, node
        inner = node.items()
    elif isinstance(node, (list, tuple)):
        inner = enumerate(node)
    else:
        return
    for key, value in inner:
        yield from _parts(value, f"{path}.{key}" if path else str(key))


def _classes(dataset: ConfigDict) -> tuple[str, ...]:
    classes = (dataset.get("metainfo") or {}).get("classes")
    if isinstance(classes, str):  # a text file
        classes = list_from_file(classes)
    return tuple(classes or class_of(dataset, DATASETS).METAINFO.get("classes") or ())


def _folder(dataset: ConfigDict, kind: str) -> str:
    prefix = (dataset.get("data_prefix") or {}).get(kind, "")
    return osp.join(dataset.get("data_root") or "", prefix)


def _swap(
    dataset: ConfigDict,
    labels: str | Path,
    classes: tuple[str, ...],
    data_root: str | Path | None,
    img_dir: str | Path | None,
) -> None:
    if issubclass(class_of(dataset, DATASETS), OTHER_FORMATS):
        for key in dataset.keys() - COMMON - {"type"}:
            del dataset[key]
        prefix = dataset.get("data_prefix") or {}
        dataset.data_prefix = dict(img=prefix.get("img", prefix.get("img_path", "")))
        dataset.type = "CocoDataset"
    if classes != _classes(dataset):
        # A class with classes of its own (LVIS, Cityscapes, ...) also reads its files its own way.
        if "METAINFO" in vars(class_of(dataset, DATASETS)):
            dataset.type = "CocoDataset"
        palette = [tuple(map(int, colour)) for colour in get_palette("random", len(classes))]
        dataset.metainfo = dict(classes=classes, palette=palette)
    dataset.ann_file = osp.abspath(labels)
    if data_root is not None:
        dataset.data_root = str(data_root)
    if img_dir is not None:
        dataset.data_prefix = {**dataset.get("data_prefix", {}), "img": osp.abspath(img_dir)}


def _check_images(
    dataset: ConfigDict, labels: str | Path, coco: dict[str, Any], advice: str
) -> None:
    kind = class_of(dataset, DATASETS)
    by_url = issubclass(kind, LVISV1Dataset)
    if not (by_url or issubclass(kind, MaskQualityDataset)) and (
        kind.load_data_list is not CocoDataset.load_data_list
        or kind.parse_data_info is not CocoDataset.parse_data_info
    ):
        return  # it has rules of its own where an image lies
    folder, backend_args = _folder(dataset, "img"), dataset.get("backend_args")
    key = "coco_url" if by_url else "file_name"
    images = coco["images"][:IMAGES_LOOKED_AT]
    for image in images:
        problem = image_problem(image)
        if problem is None and key not in image:
            problem = f"image {image['id']!r} has no {key!r}, which {dataset.type} needs"
        if problem:
            raise ValueError(f"{labels} cannot be trained on: {problem}")
    names = [image[key].replace(COCO_URL, "") for image in images]
    paths = [osp.join(folder, name) for name in names]
    missing = [path for path in paths if not exists(path, backend_args=backend_args)]
    if missing:
        raise ValueError(
            f"{len(missing)} of the first {len(paths)} images of {labels} were not found; looked "
            f"for {missing[0]}. {advice}"
        )
    for image, path in zip(images, paths if not backend_args else []):
        expected = image["width"], image["height"]
        if (found := image_size(path)) != expected:
            raise ValueError(
                f"{path} has {found[0]}×{found[1]} pixels, but {expected[0]}×{expected[1]} in "
                f"{labels}: they do not belong together, and no mask would fit. {advice}"
            )


def _folder_advice(dataset: ConfigDict, option: str) -> str:
    prefix = (dataset.get("data_prefix") or {}).get("img", "")
    advice = f"Give their folder with {option}"
    if not osp.isabs(prefix):
        advice += f", or with --data-root the one that has them in {prefix!r}"
    return advice


def _missing_semantic_maps(cfg: Config, dataset: ConfigDict) -> str | None:
    """The folder of semantic maps, if the config learns from them and it is not there."""
    if not any(part.get("with_seg") for _, part in _parts(cfg.train_dataloader)):
        return None
    folder = _folder(dataset, "seg")
    return None if exists(folder, backend_args=dataset.get("backend_args")) else folder


def _leave_out_semantic_branch(cfg: Config, dataset: ConfigDict, folder: str) -> None:
    """Trains HTC, SCNet and DetectoRS as their configs without semantic maps would."""
    print(f"training without semantic branch: there is no folder {folder} of semantic maps")
    dataset.get("data_prefix", {}).pop("seg", None)
    for _, part in [*_parts(cfg.train_dataloader), *_parts(cfg.model)]:
        for key in {"semantic_head", "semantic_roi_extractor"}.intersection(part):
            part[key] = None
        for key in {"with_seg", "pad_seg"}.intersection(part):
            part[key] = False


def _check_annotations(
    labels: str | Path,
    coco: dict[str, Any],
    needs_masks: bool,
    polygons_alone: Sequence[str] = (),
    learned: bool = True,
) -> None:
    """Reads all annotations as MMDetection will, but says what it would fail at or leave out.

    Args:
        labels, coco: The label file.
        needs_masks: Whether an annotation without a mask would end the training.
        polygons_alone: Options of the config that keep it from reading RLE.
        learned: Whether the file is trained on. Evaluators leave nothing out.
    """
    known = dict(image_id=coco["images"], category_id=coco["categories"])
    known = {key: {entry["id"]: entry for entry in entries} for key, entries in known.items()}
    objects, maskless, masks, left_out = 0, None, 0, []
    for i, ann in enumerate(track(coco["annotations"], "checking labels", "boxes", bar_only=True)):
        if problem := _annotation_problem(ann, known):
            raise ValueError(f"{labels} cannot be trained on: annotations[{i}] {problem}")
        if ann.get("ignore"):  # MMDetection leaves it out
            continue
        crowd = bool(ann.get("iscrowd"))
        image = known["image_id"][ann["image_id"]]
        if learned and not crowd and _is_left_out(ann, image, needs_masks):
            left_out.append(i)
            continue
        if needs_masks and has_mask(ann) and (problem := mask_problem(ann["segmentation"], image)):
            raise ValueError(
                f"{labels} cannot be trained on: the mask of annotations[{i}] cannot be read: "
                f"{problem}"
            )
        objects += not crowd
        masks += has_mask(ann)
        if maskless is None and not has_mask(ann):
            maskless = i
        # Crowds are RLE in any file, and ignored by any detector.
        if polygons_alone and not crowd and isinstance(ann.get("segmentation"), dict):
            options = " ".join(f"{path}.poly2mask=True" for path in polygons_alone)
            raise ValueError(
                f"annotations[{i}] of {labels} is an RLE mask. The config reads polygons alone "
                "(poly2mask=False) and would ignore the object without a word. Write the labels "
                "with `tools/generate_labels.py ... --mask-format polygon`, or let the config "
                f"read both: --cfg-options {options}"
            )
    if left_out:
        message = (
            f"MMDetection leaves out {len(left_out)} annotations of {labels}, annotations"
            f"[{left_out[0]}] for one: their area is 0, their box smaller than a pixel or outside "
            "the image, or their masks show nothing"
        )
        if not objects:
            raise ValueError(f"{message}. Nothing can be learned from the file")
        print_log(message, logger="current", level=logging.WARNING)
    if not objects:
        raise ValueError(f"all annotations of {labels} are crowds: nothing can be learned from it")
    if needs_masks and not masks:
        raise ValueError(
            f"no annotation of {labels} has a mask; expected labels, as tools/generate_labels.py "
            "makes them from boxes"
        )
    if needs_masks and maskless is not None:
        raise ValueError(
            f"annotations[{maskless}] of {labels} has no mask, at which a training would fail; "
            "tools/generate_labels.py --only-missing labels those that have none"
        )


def _mask_loading(steps: dict[str, Any]) -> tuple[bool, list[str]]:
    """Whether a data set reads masks, and where the config has steps that read polygons alone.

    Args:
        steps: Where the config has them → the data set, first, and the hooks, of which one may
            change its pipeline in mid-training.
    """
    data = next(iter(steps))
    loading = [(path, step) for path, step in _parts(steps) if step.get("with_mask")]
    if not any(path.startswith(data) for path, _ in loading):
        return False, []
    return True, [path for path, step in loading if step.get("poly2mask") is False]


def _is_left_out(ann: dict[str, Any], image: dict[str, Any], needs_masks: bool) -> bool:
    """Whether ``CocoDataset``, or the reading of its mask, drops an object without a word."""
    x, y, w, h = ann["bbox"]
    inside = x < image["width"] and y < image["height"] and x + w > 0 and y + h > 0
    if ann["area"] <= 0 or w < 1 or h < 1 or not inside:
        return True
    return needs_masks and has_mask(ann) and _shows_nothing(ann["segmentation"])


def _shows_nothing(segmentation: Any) -> bool:
    """Whether ``LoadAnnotations`` ignores an object for its mask: RLE without runs or size, or
    polygons of which none has three points.
    """
    if isinstance(segmentation, dict):
        counts, size = (segmentation.get(key) for key in ("counts", "size"))
        return size is None or not isinstance(counts, (list, str))
    if not isinstance(segmentation, list) or not all(isinstance(p, list) for p in segmentation):
        return False
    return not any(len(p) >= 6 and len(p) % 2 == 0 for p in segmentation)


def _annotation_problem(ann: Any, known: dict[str, dict]) -> str | None:
    if not isinstance(ann, dict):
        return f"is {ann!r:.40}, expected an object"
    for key, ids in known.items():
        value = ann.get(key)
        if not isinstance(value, (int, str)) or value not in ids:
            return f"has the {key} {value!r:.40}, which the file does not have"
    if not is_bbox(ann.get("bbox")):
        return f"has the bbox {ann.get('bbox')!r:.40}, expected four numbers"
    if not is_finite(ann.get("area")):
        return (
            f"has the area {ann.get('area')!r:.40}, expected that of its mask, which "
            "tools/generate_labels.py writes"
        )
    image = known["image_id"][ann["image_id"]]
    # Where the image lies is the data set's affair.
    if problem := image_problem({"file_name": "any", **image}):
        return f"cannot be used: {problem}"
    return None


def _validate_on(
    cfg: Config,
    labels: str | Path,
    classes: tuple[str, ...],
    data_root: str | Path | None,
    img_dir: str | Path | None,
) -> None:
    coco = _read(labels)
    found = tuple(category["name"] for category in coco["categories"])
    if found != classes:
        raise ValueError(
            f"{labels} has other categories than the training labels, or in another order: "
            f"{_differences(found, classes)}. Detectors know classes by their place in the list, "
            "so both files need the same"
        )
    needs_masks, _ = _mask_loading(dict(train=cfg.train_dataloader))
    _check_annotations(labels, coco, needs_masks, learned=False)
    if cfg.get("val_dataloader") is None or cfg.get("val_cfg") is None:
        raise ValueError(
            f"the config has no val_dataloader or no val_cfg, so {labels} cannot be used; leave "
            "out --val-labels"
        )
    for stage in ("val", "test"):
        loader = cfg.get(f"{stage}_dataloader")
        if loader is None:
            continue
        dataset = innermost_dataset(loader.dataset)
        before = dataset.type
        _swap(dataset, labels, classes, data_root, img_dir)
        _check_images(dataset, labels, coco, _folder_advice(dataset, "--val-img-dir"))
        metrics = ["bbox", "segm"] if needs_masks else ["bbox"]
        evaluator = _evaluator(
            cfg.get(f"{stage}_evaluator"), labels, metrics, dataset.type == before
        )
        cfg[f"{stage}_evaluator"] = evaluator


def _differences(found: tuple[str, ...], expected: tuple[str, ...]) -> str:
    if len(found) != len(expected):
        return f"{len(found)} instead of {len(expected)}"
    i = next(i for i, pair in enumerate(zip(found, expected)) if pair[0] != pair[1])
    return f"categories[{i}] is {found[i]!r} instead of {expected[i]!r}"


def _evaluator(
    evaluators: Any, labels: str | Path, metrics: list[str], same_dataset: bool
) -> dict[str, Any]:
    """The first metric that reads a COCO file, or a new one of COCO's with these measures.

    Others need files that came with the config's.
    """
    evaluators = evaluators if isinstance(evaluators, (list, tuple)) else [evaluators]
    for evaluator in evaluators:
        if not evaluator or "metric" not in evaluator:
            continue
        if "ann_file" in evaluator or evaluator["type"] == "CocoMetric":
            kind = evaluator["type"] if same_dataset else "CocoMetric"
            return {**evaluator, "type": kind, "ann_file": osp.abspath(labels)}
    return dict(type="CocoMetric", ann_file=osp.abspath(labels), metric=metrics)


def _keep_validation(
    cfg: Config, train_labels: str | Path, classes: tuple[str, ...], data_root: str | Path | None
) -> None:
    if cfg.get("val_dataloader") is None:
        return
    dataset = innermost_dataset(cfg.val_dataloader.dataset)
    root = dataset.get("data_root") or "" if data_root is None else str(data_root)
    path = osp.join(root, dataset.ann_file)
    if issubclass(class_of(dataset, DATASETS), DSDLDetDataset):
        reason = f"nobody knows the classes of {path} yet"
    elif classes != _classes(dataset):
        reason = f"{path} has other classes than {train_labels}"
    elif not exists(path, backend_args=dataset.get("backend_args")):
        reason = f"{path} does not exist"
    else:
        if data_root is not None:
            _move(cfg, str(data_root))
        return
    print(f"training without validation: {reason}. To validate, give --val-labels")
    for key in ("dataloader", "evaluator", "cfg"):
        cfg[f"val_{key}"] = None
    # The test stays: it is built only when it runs, and inference takes its pipeline from there.


def _move(cfg: Config, data_root: str) -> None:
    """Takes validation and test to another root, evaluators with them."""
    for stage in ("val", "test"):
        loader = cfg.get(f"{stage}_dataloader")
        if loader is None:
            continue
        dataset = innermost_dataset(loader.dataset)
        before = dataset.get("data_root") or ""
        dataset.data_root = data_root
        for _, evaluator in _parts(cfg.get(f"{stage}_evaluator")):
            for key in ("ann_file", "seg_prefix"):
                if before and str(evaluator.get(key, "")).startswith(before):
                    relative = osp.relpath(evaluator[key], before)
                    evaluator[key] = osp.join(data_root, relative)
