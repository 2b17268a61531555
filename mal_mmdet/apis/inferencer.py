# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import copy
import difflib
import os.path as osp
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmcv.transforms import LoadImageFromFile
from mmdet.apis.det_inferencer import IMG_EXTENSIONS
from mmdet.registry import DATASETS, TRANSFORMS
from mmdet.structures import DetDataSample
from mmengine.config import Config, ConfigDict
from mmengine.dataset import Compose, pseudo_collate
from mmengine.fileio import list_dir_or_file
from mmengine.infer import BaseInferencer
from mmengine.registry import init_default_scope
from mmengine.runner.checkpoint import _load_checkpoint_to_model
from mmengine.structures import InstanceData
from PIL import Image
from pycocotools import mask as mask_utils
from torch import Tensor, nn

from mal_mmdet.checkpoints import trusting_checkpoints
from mal_mmdet.datasets import BoxCropDataset, ImageBoxDataset
from mal_mmdet.datasets.label_batch_sampler import cut_batches
from mal_mmdet.datasets.transforms.formatting import no_crops
from mal_mmdet.labeling import (
    bbox_problem,
    encode_window,
    image_file,
    image_problem,
    image_size,
    mask_windows,
    open_coco,
    replacing,
    write_json,
)
from mal_mmdet.models import MaskAutoLabeler
from mal_mmdet.progress import track

from .launch import class_of, use_boxes

RETURNED_MASKS = ("rle", "array")
FIELDS = ("bboxes", "labels", "scores", "masks", "mask_quality", "ann_ids")
ImageType = str | Path | np.ndarray


class MALInferencer(BaseInferencer):
    """Masks for the boxes of images, in the manner of mmdet's ``DetInferencer``.

    Boxes that are a COCO file get the masks that :func:`generate_labels` writes for it, to the
    bit, on the same device.

    Args:
        model: Config file, config, or name or alias of one in the package's model index; the
            names are ``MALInferencer.list_models('mal_mmdet')``. Without it, the config that
            MMEngine has put into the weights is used.
        weights: Checkpoint of the config's network. May be left out for a model of the index
            that has weights there.
        device: Such as ``'cuda:0'``; without it, the best that there is.
        show_progress: Whether to show a progress bar.
        trust_checkpoint: Whether the weights may run any code: what is more than tensors and plain
            values is loaded only then, and the config in them, which is a program too, used.

    Raises:
        FileNotFoundError: No such weights.
        ValueError: Unknown model, no weights, or those of another network.
        TypeError: The config is not one of phase 1.

    Examples:
        >>> inferencer = MALInferencer(
        ...     'mal_vit-demo_1xb16_demo', weights='mal.pth', device='cpu', show_progress=False
        ... )
        Loads checkpoint by local backend from path: mal.pth
        >>> result = inferencer('photo.jpg', boxes=[[20, 30, 90, 100], [0, 0, 64.5, 48]])
        >>> prediction = result['predictions'][0]
        >>> prediction['bboxes']
        [[20.0, 30.0, 90.0, 100.0], [0.0, 0.0, 64.5, 48.0]]
        >>> prediction['masks'][0]['size']  # COCO's RLE: height and width of the image
        [120, 160]
        >>> all(0 <= quality <= 1 for quality in prediction['mask_quality'])
        True

        Several images at a time, the masks as arrays:

        >>> boxes = [np.array([[20, 30, 90, 100]]), np.empty((0, 4))]
        >>> result = inferencer(['photo.jpg', 'other.jpg'], boxes, mask_format='array')
        >>> [prediction['masks'].shape for prediction in result['predictions']]
        [(1, 120, 160), (0, 100, 100)]

        The boxes of a COCO file for the images of a folder, with pictures and RLEs on the disk:

        >>> result = inferencer('images', boxes='boxes.json', out_dir='out')
        >>> result['predictions'][0]['img_path'], result['predictions'][0]['ann_ids']
        ('images/0.jpg', [7, 9])
        >>> sorted(str(path) for path in Path('out').rglob('*.*'))
        ['out/preds/0.json', 'out/vis/0.jpg']
    """

    def __init__(
        self,
        model: str | Path | dict | Config | ConfigDict | None = None,
        weights: str | Path | None = None,
        device: str | None = None,
        show_progress: bool = True,
        trust_checkpoint: bool = False,
    ) -> None:
        if model is None and not trust_checkpoint:
            raise ValueError(
                f"no model is given, and the config in {weights} is a program, which could do "
                "anything on this machine; give the config as model=…, or, if you trust whoever "
                "made the file, allow that by trust_checkpoint=True"
            )
        init_default_scope("mmdet")
        with trusting_checkpoints(trust_checkpoint):
            super().__init__(
                model=str(model) if isinstance(model, Path) else model,
                weights=weights and str(weights),
                device=device,
                scope="mmdet",
                show_progress=show_progress,
            )
        self.model.paste_masks = False  # as in labeling
        self.crops_per_batch = self.model.crops_per_batch
        self.num_arrays = 0  # names of pictures that have none

    def __call__(
        self,
        inputs: ImageType | Sequence[ImageType],
        boxes: Any,
        batch_size: int | None = None,
        *,
        pred_score_thr: float = 0.3,
        mask_format: str = "rle",
        return_datasamples: bool = False,
        return_vis: bool = False,
        show: bool = False,
        wait_time: float = 0,
        out_dir: str | Path = "",
        no_save_vis: bool = False,
        no_save_pred: bool = False,
    ) -> dict[str, list]:
        """Makes a mask for every box.

        Args:
            inputs: An image, several, or a folder of them. An image is a file, or its pixels:
                uint8, shape (H, W, 3), BGR.
            boxes: One of

                - the boxes of the image or, for several images, a list with those of each (for a
                  folder: sorted by name). The boxes of an image are an array, a tensor or a
                  list, (N, 4), x0, y0, x1, y1 in the image frame; or a dictionary, an
                  ``InstanceData`` or a ``DetDataSample`` with those as ``bboxes`` and, if there
                  are any, ``labels`` (N,) and ``scores`` (N,);
                - what a ``DetInferencer`` has returned for the same inputs;
                - a COCO file. Images are found by the end of their paths, see
                  :func:`image_file`; from a folder those are taken that have boxes in the file.
                  Crowds are left out, and with a warning what cannot be used.
            batch_size: Most boxes in one pass through the network; without it ``crops_per_batch``
                of the config's model. Images with few boxes share a pass.
            pred_score_thr: Boxes with a lower score are left out, and so are those with a score
                but no area. Boxes that have no score are all used.
            mask_format: ``'rle'``, COCO's compressed RLE as it stands in a JSON file, or
                ``'array'``: bool, shape (N, H, W).
            return_datasamples: Whether predictions are ``DetDataSample``, with ``masks`` as a
                tensor, instead of dictionaries.
            return_vis: Whether to return the drawn pictures.
            show: Whether to show them in a window.
            wait_time: Seconds each is shown; 0 is for ever.
            out_dir: Folder for drawn pictures, ``vis/<name>.jpg``, and predictions with RLE,
                ``preds/<name>.json``. A name is the path below the folder that all images share;
                arrays are numbered. Nothing is written without it.
            no_save_vis: Whether to leave the pictures out.
            no_save_pred: Whether to leave the predictions out.

        Returns:
            ``predictions``, one an image: ``img_path`` (None for arrays), ``bboxes``, ``labels``,
            ``scores`` (of a mask the mean probability in it, where the box has none),
            ``masks``, ``mask_quality`` (see :func:`mask_quality`) and for a COCO file
            ``ann_ids``. ``visualization``: with ``return_vis`` the pictures, uint8, (H, W, 3),
            RGB.

        Raises:
            FileNotFoundError: No such COCO file.
            ValueError: Boxes do not fit the images, or cannot be used; an image cannot be read.
        """
        if mask_format not in RETURNED_MASKS:
            raise ValueError(f"mask_format is {mask_format!r}, expected one of {RETURNED_MASKS}")
        if batch_size is not None and batch_size < 1:
            raise ValueError(f"batch_size is {batch_size}, expected at least one box")
        if isinstance(boxes, (str, Path)):
            images, classes = self._coco_images(inputs, boxes)
        else:
            images, classes = self._given_images(inputs, boxes, pred_score_thr), None
        vis_dir = pred_dir = None
        if out_dir:
            vis_dir = None if no_save_vis else Path(out_dir) / "vis"
            pred_dir = None if no_save_pred else Path(out_dir) / "preds"
        names = self._names(images, unique=bool(out_dir))
        self.model.crops_per_batch = batch_size or self.crops_per_batch
        counts = np.array([len(image["instances"]) for image in images])
        batches = cut_batches(counts, self.model.crops_per_batch)
        results: dict[str, list] = dict(predictions=[], visualization=[])
        for batch, data in track(
            zip(batches, self.preprocess(images, batches)),
            "Inference",
            "batches",
            len(batches),
            disable=not self.show_progress,
        ):
            preds = self.forward(data)
            batch_names = [names[i] for i in batch]
            if show or return_vis or vis_dir:
                pictures = self.visualize(
                    [images[i] for i in batch],
                    preds,
                    batch_names,
                    show,
                    wait_time,
                    vis_dir,
                    classes,
                )
                results["visualization"] += pictures if return_vis else []
            results["predictions"] += self.postprocess(
                preds, batch_names, pred_dir, mask_format, return_datasamples
            )
        return results

    def preprocess(self, images: Sequence[dict], batches: Sequence[range]) -> Iterator[dict]:
        """Reads images and cuts crops, a batch at a time.

        Args:
            images: See :class:`ImageBoxDataset`.
            batches: Indices of the images in each batch.

        Yields:
            What ``model.test_step`` takes.

        Raises:
            ValueError: An image cannot be read.
        """
        crops = BoxCropDataset(
            dict(type=ImageBoxDataset, images=images, pipeline=self.pipeline),
            self.cfg.test_dataloader.dataset.pipeline,
            group_by_image=True,
        )
        samples = map(crops.__getitem__, range(len(crops)))  # of the images that have boxes
        for batch in batches:
            data = [
                next(samples) if images[i]["instances"] else _no_crops(images[i]) for i in batch
            ]
            for failed in (sample["data_samples"].failed for sample in data):
                if failed:
                    raise ValueError(next(iter(failed.values())))
            yield self.collate_fn(data)

    def forward(self, inputs: dict) -> list[DetDataSample]:
        """Masks of a batch: ``pred_instances`` of each image, with ``masks`` a list of RLEs."""
        return [_with_rles(sample) for sample in super().forward(inputs)]

    def visualize(
        self,
        inputs: Sequence[dict],
        preds: Sequence[DetDataSample],
        names: Sequence[str],
        show: bool = False,
        wait_time: float = 0,
        vis_dir: Path | None = None,
        classes: Sequence[str] | None = None,
    ) -> list[np.ndarray]:
        """Draws boxes and masks of a batch with the config's visualizer.

        Args:
            inputs: The images, see :class:`ImageBoxDataset`.
            preds: What :meth:`forward` gives.
            names: Of the pictures.
            show: As in :meth:`__call__`.
            wait_time: As in :meth:`__call__`.
            vis_dir: Folder to write ``<name>.jpg`` to.
            classes: Names of the labels; without them those of ``visualizer.dataset_meta``.

        Returns:
            Pictures, uint8, (H, W, 3), RGB.

        Raises:
            ValueError: The config has no visualizer.
        """
        if self.visualizer is None:
            raise ValueError("the config has no visualizer to draw with; see _base_ of the others")
        pictures = []
        for image, pred, name in zip(inputs, preds, names):
            pixels = self.pipeline(dict(image))["img"]
            if self.model.data_preprocessor.bgr_to_rgb:
                pixels = pixels[..., ::-1]
            pred = _with_arrays(pred)
            if classes:
                labels = pred.pred_instances.labels.tolist()
                pred.pred_instances.label_names = [str(classes[label]) for label in labels]
            options = dict(draw_gt=False, show=show, wait_time=wait_time, pred_score_thr=-1)
            self.visualizer.add_datasample(name, pixels, pred, **options)
            pictures.append(self.visualizer.get_image())
            if vis_dir:
                with replacing(vis_dir / f"{name}.jpg") as temporary:
                    Image.fromarray(pictures[-1]).save(temporary, format="jpeg", quality=95)
        return pictures

    def postprocess(
        self,
        preds: Sequence[DetDataSample],
        names: Sequence[str],
        pred_dir: Path | None = None,
        mask_format: str = "rle",
        return_datasamples: bool = False,
    ) -> list[dict | DetDataSample]:
        """Writes and returns the predictions of a batch, see :meth:`__call__`.

        Args:
            preds: What :meth:`forward` gives.
            names: Of the files.
            pred_dir: Folder to write ``<name>.json`` to.
            mask_format: As in :meth:`__call__`.
            return_datasamples: As in :meth:`__call__`.
        """
        results = []
        for pred, name in zip(preds, names):
            result: Any = dict(img_path=pred.img_path)
            for key in (key for key in FIELDS if key in pred.pred_instances):
                value = pred.pred_instances[key]
                result[key] = value.tolist() if isinstance(value, Tensor) else value
            if pred_dir:
                write_json(pred_dir / f"{name}.json", result)
            if return_datasamples:
                result = _with_arrays(pred)
            elif mask_format == "array":
                result["masks"] = _decode(result["masks"], pred.ori_shape)
            results.append(result)
        return results

    def _load_model_from_metafile(self, model: str) -> tuple[Config, str | None]:
        root = self._get_repo_or_mim_dir("mal_mmdet")
        entries = {}
        for entry in self._get_models_from_metafile(root):
            for name in (entry["Name"], *entry.get("Alias", [])):
                entries[name.lower()] = entry
        entry = entries.get(model.lower())
        if entry is None:
            near = difflib.get_close_matches(model.lower(), entries, n=5, cutoff=0.4)
            raise ValueError(
                f"{model} is neither a config file nor a model of mal_mmdet"
                + (f"; near are {', '.join(near)}" if near else "")
                + "; all names: MALInferencer.list_models('mal_mmdet')"
            )
        return Config.fromfile(osp.join(root, entry["Config"])), entry.get("Weights")

    def _load_weights_to_model(
        self, model: nn.Module, checkpoint: dict | None, cfg: Config | ConfigDict
    ) -> None:
        if not isinstance(model, MaskAutoLabeler):
            raise TypeError(
                f"the config's model is a {type(model).__name__}, expected a MaskAutoLabeler, of "
                "phase 1; for detectors take mmdet's DetInferencer"
            )
        if checkpoint is None:
            raise ValueError(
                "no weights: name a checkpoint with weights=…; the model index has none for this "
                "model. Train it with tools/train.py, or convert the authors' weights with "
                "tools/model_converters/mal_released_to_mmdet.py"
            )
        try:
            _load_checkpoint_to_model(model, checkpoint, strict=True)
        except RuntimeError as error:
            raise ValueError(
                f"the weights are not of the config's network (model.network): {error}"
            ) from error
        model.cast_networks()

    def _init_pipeline(self, cfg: Config | ConfigDict) -> Callable[[dict], dict]:
        """The config's way to load an image, which now takes arrays too."""
        steps = [ConfigDict(step) for step in cfg.test_dataloader.dataset.dataset.pipeline]
        for step in steps:
            if class_of(step, TRANSFORMS) is LoadImageFromFile:
                step["type"] = "mmdet.InferencerLoader"
        return Compose(steps)

    def _init_collate(self, cfg: Config | ConfigDict) -> Callable[[list], dict]:
        """What the model's preprocessor takes; the parent looks for others, and warns."""
        return pseudo_collate

    def _given_images(self, inputs: Any, boxes: Any, pred_score_thr: float) -> list[dict]:
        detected = isinstance(boxes, Mapping) and "predictions" in boxes
        if detected:
            boxes = boxes["predictions"]
        if _is_folder(inputs):
            folder = str(inputs)
            # The order of DetInferencer, whose results do not name their images.
            found = list(list_dir_or_file(folder, list_dir=False, suffix=IMG_EXTENSIONS))
            inputs = [osp.join(folder, name) for name in (found if detected else sorted(found))]
            if not inputs:
                raise ValueError(f"{folder} has no images; expected one of {IMG_EXTENSIONS}")
        elif not isinstance(inputs, (list, tuple)):
            inputs = [inputs]
            boxes = boxes if detected else [boxes]
        if not hasattr(boxes, "__len__") or len(boxes) != len(inputs):
            raise ValueError(
                f"{len(inputs)} images have boxes for "
                f"{len(boxes) if hasattr(boxes, '__len__') else boxes!r}; expected a list with "
                "those of each image"
            )
        images = []
        for i, (image, entry) in enumerate(zip(inputs, boxes)):
            name = f"inputs[{i}]" if isinstance(image, np.ndarray) else str(image)
            image = _open(image, name)
            image["instances"] = _instances(entry, name, pred_score_thr)
            for j, instance in enumerate(image["instances"]):
                x0, y0, x1, y1 = instance["bbox"]
                bbox = [x0, y0, x1 - x0, y1 - y0]
                if problem := bbox_problem(bbox, image["width"], image["height"]):
                    raise ValueError(
                        f"box {j} of {name} has x0, y0, x1, y1 = {instance['bbox']}; as x, y, "
                        f"width, height: {problem}"
                    )
            images.append(image)
        return images

    def _coco_images(self, inputs: Any, ann_file: str | Path) -> tuple[list[dict], Sequence[str]]:
        cfg = copy.deepcopy(self.cfg)
        whole = _is_folder(inputs)
        use_boxes(cfg, ann_file, inputs if whole else "")
        options = dict(
            pipeline=[],
            allow_outside=not whole,  # files that the caller names may lie anywhere
            show_progress=self.show_progress,
        )
        dataset = DATASETS.build(dict(cfg.test_dataloader.dataset.dataset, **options))
        images = [dataset.get_data_info(i) for i in range(len(dataset))]
        for image in images:
            image["instances"] = [box for box in image["instances"] if not box["ignore_flag"]]
        if not whole:
            by_id, files = {image["img_id"]: image for image in images}, {}
            for entry in open_coco(ann_file)["images"]:
                if image_problem(entry):  # the data set has said so of its boxes
                    continue
                name = osp.normpath(image_file(entry, dataset.path_parts))
                if name in files:
                    raise ValueError(
                        f"{ann_file} has several images with the file name {name}, so that nobody "
                        "knows whose boxes are meant; make one of them"
                    )
                files[name] = by_id.get(entry["id"], dict(img_id=entry["id"], instances=[]))
            inputs = inputs if isinstance(inputs, (list, tuple)) else [inputs]
            images = [_find(image, files, ann_file) for image in inputs]
        return [_open(image["img_path"]) | image for image in images], dataset.metainfo["classes"]

    def _names(self, images: Sequence[dict], unique: bool) -> list[str]:
        paths = [osp.abspath(image["img_path"]) for image in images if "img_path" in image]
        folder = osp.commonpath(map(osp.dirname, paths)) if paths else ""
        names = []
        for image in images:
            if "img_path" in image:
                name = osp.relpath(osp.abspath(image["img_path"]), folder)
                names.append(osp.splitext(name)[0])
            else:
                names.append(f"{self.num_arrays:08d}")
                self.num_arrays += 1
        if unique and len(set(names)) < len(names):
            twice = sorted({name for name in names if names.count(name) > 1})
            raise ValueError(
                f"several images would be written to out_dir as {', '.join(twice[:5])}; give them "
                "one at a time, each with an out_dir of its own"
            )
        return names


def _is_folder(inputs: Any) -> bool:
    return isinstance(inputs, (str, Path)) and osp.isdir(inputs)


def _open(image: ImageType, name: str = "") -> dict[str, Any]:
    """Entry of an image, with its size; files are not decoded yet."""
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
            raise ValueError(
                f"{name} is an array of {image.dtype} with shape {image.shape}; expected uint8, "
                "(H, W, 3), BGR"
            )
        return dict(img=image, height=image.shape[0], width=image.shape[1])
    if not isinstance(image, (str, Path)):
        raise ValueError(f"{name} is a {type(image).__name__}; expected a file or an array")
    try:
        width, height = image_size(image)
    except OSError as error:
        raise ValueError(
            f"image {image} cannot be read ({type(error).__name__}: {error})"
        ) from error
    return dict(img_path=str(image), height=height, width=width)


def _instances(entry: Any, name: str, pred_score_thr: float) -> list[dict[str, Any]]:
    """The boxes of one image as mmdet's data sets have them."""
    if isinstance(entry, DetDataSample):
        entry = entry.pred_instances
    if not isinstance(entry, (Mapping, InstanceData)):
        entry = dict(bboxes=entry)
    if "bboxes" not in entry:
        raise ValueError(f"boxes of {name} have no 'bboxes', only {sorted(entry.keys())}")
    bboxes = _array(entry["bboxes"], np.float64, f"boxes of {name}")
    if not bboxes.size:
        return []
    if bboxes.ndim != 2 or bboxes.shape[1] != 4:
        raise ValueError(
            f"boxes of {name} have shape {bboxes.shape}; expected (N, 4): x0, y0, x1, y1 in pixels"
        )
    columns = dict(bbox=bboxes)
    for key, field, dtype in (
        ("bbox_label", "labels", np.int64),
        ("score", "scores", np.float64),
    ):
        if field in entry:
            columns[key] = _array(entry[field], dtype, f"{field} of {name}")
            if columns[key].shape != (len(bboxes),):
                raise ValueError(
                    f"{field} of {name} have shape {columns[key].shape}; expected "
                    f"({len(bboxes)},), one for every box"
                )
    if "score" in columns:
        empty = (bboxes[:, 2:] <= bboxes[:, :2]).any(1)
        kept = ~(empty | (columns["score"] < pred_score_thr))
        columns = {key: column[kept] for key, column in columns.items()}
    rows = zip(*(column.tolist() for column in columns.values()))
    return [dict(bbox_label=0) | dict(zip(columns, row)) for row in rows]


def _array(values: Any, dtype: type, name: str) -> np.ndarray:
    values = values.detach().cpu().numpy() if isinstance(values, Tensor) else values
    try:
        return np.asarray(values, dtype=dtype)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name} are no array of numbers: {error}") from None


def _find(image: Any, files: Mapping[str, dict], ann_file: str | Path) -> dict[str, Any]:
    """The entry of a COCO file whose file name a path ends with; the longest of several."""
    if not isinstance(image, (str, Path)):
        raise ValueError(
            f"boxes of a COCO file belong to files, got a {type(image).__name__} as image; give "
            "the boxes of arrays as arrays"
        )
    parts = Path(image).parts
    for start in range(len(parts)):
        name = str(Path(*parts[start:]))
        if name in files:
            return files[name] | dict(img_path=str(image))
    raise ValueError(
        f"{ann_file} has no image whose file name {image} ends with; its file names are such as "
        f"{', '.join(list(files)[:3])}"
    )


def _no_crops(image: Mapping[str, Any]) -> dict[str, Any]:
    shape = image["height"], image["width"]
    metainfo = dict(img_path=image.get("img_path"), ori_shape=shape, img_shape=shape, failed={})
    data = no_crops(metainfo)
    if "img_id" not in image:  # of no file, so that others have no ids either
        del data["data_samples"].gt_instances.ann_ids
    return data


def _with_rles(sample: DetDataSample) -> DetDataSample:
    """A prediction of the model as the user gets it, with masks in the image frame."""
    raw, shape = sample.pred_instances, tuple(sample.ori_shape)
    windows = list(mask_windows(raw, shape))
    if None in windows:
        raise ValueError(
            f"the network's prediction for box {windows.index(None)} of {sample.img_path} is not "
            "finite; has its training diverged, or does it overflow in predict_dtype?"
        )
    pred = InstanceData(
        bboxes=raw.bboxes,
        labels=raw.labels,
        scores=raw.get("scores", torch.tensor([window.score for window in windows])),
        masks=[encode_window(window, shape) for window in windows],
        mask_quality=raw.mask_quality,
    )
    if "ann_ids" in raw:
        pred.ann_ids = raw.ann_ids
    metainfo = dict(img_path=sample.img_path, ori_shape=shape, img_shape=shape)
    result = DetDataSample(metainfo=metainfo)
    result.pred_instances = pred
    return result


def _with_arrays(sample: DetDataSample) -> DetDataSample:
    result = DetDataSample(metainfo=sample.metainfo)
    result.pred_instances = sample.pred_instances.clone()  # shares what is not replaced
    masks = _decode(sample.pred_instances.masks, sample.ori_shape)
    result.pred_instances.masks = torch.from_numpy(masks)
    return result


def _decode(rles: Sequence[dict], shape: tuple[int, int]) -> np.ndarray:
    """Masks, bool, (N, H, W)."""
    masks = np.zeros((len(rles), *shape), dtype=bool)
    for mask, rle in zip(masks, rles):
        mask[:] = mask_utils.decode(rle)
    return masks
