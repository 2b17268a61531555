# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from numbers import Real

import torch
from mmdet.registry import MODELS
from mmdet.structures import DetDataSample
from mmengine.logging import MessageHub
from mmengine.model import BaseModel
from mmengine.structures import InstanceData
from mmpretrain.models import SwinTransformer, VisionTransformer, ViTSAM
from torch import Tensor
from torchvision.ops import clip_boxes_to_image

from mal_mmdet.labeling import mask_quality, paste_mask, threshold_for_area
from mal_mmdet.structures import box_masks, resample_maps, resize_maps

from .refine import refine_logits

LABEL_SOURCES = ("student", "teacher", "both")
HALF_LIMIT = torch.finfo(torch.float16).max
PREDICT_DTYPES = ("float32", "bfloat16", "float16")


@MODELS.register_module()
class MaskAutoLabeler(BaseModel):
    """Mask Auto-Labeler: learns a mask for every box from boxes alone.

    Student and teacher are two copies of one network. The student learns by gradient; the
    teacher follows it through :class:`MultiTensorMeanTeacherHook` and only helps to make the
    target of the CRF loss.

    Args:
        network: Config of a :class:`MaskNetwork`.
        mil_loss: Config of the multiple-instance loss.
        crf_loss: Config of the CRF loss.
        data_preprocessor: Config of a :class:`CropDataPreprocessor`.
        mirror_teacher: Whether the teacher sees the mirrored crop, and its logits are turned back
            (not in the paper). A row or column is content with one foreground pixel, wherever it
            is; without pretrained weights the student may learn a corner of the crop for it.
            Whoever looks into the mirror looks into the other corner, so that the CRF loss, which
            follows what both agree on, takes it away.
        mirror_student: Whether the student learns by its mean probability on the crop and the
            mirrored crop (not in the paper), as ``flip_test`` predicts: it cannot satisfy a row by
            what is then averaged away. Takes another forward and backward pass.
        label_source: Whose logits make the labels: ``'student'``, ``'teacher'`` or ``'both'``
            (their mean).
        flip_test: Whether to average the logits with those of the mirrored crop.
        refine_test: Whether masks are refined by the colours of each crop and the mean field of the
            CRF loss, with its ζ, ω and steps (not in the paper), see :func:`refine_logits`.
        color_weight: That of the colours in refining, whatever the CRF loss has for its targets; 0
            leaves the mean field alone.
        thresholds: A mask is where the probability exceeds this; one value, or three for boxes
            up to 32² pixels, up to 96² pixels and larger.
        crops_per_batch: Most crops in one forward pass of prediction.
        paste_masks: Whether predictions hold masks in the image frame. :class:`LabelWriter` does
            without: it pastes beside the prediction, and in the pixels of the box alone, as
            :class:`MaskIoUMetric` can. A GPU may then still be at work when :meth:`predict`
            returns, see :func:`arrived`.
        predict_dtype: Floating-point type that networks predict in, ``float32``, or ``bfloat16``
            or ``float16`` by autocast, where :meth:`cast_networks` was not called.
        return_features: Whether predictions hold the encoder's map of every crop, which
            :class:`ClusteringScoreMetric` needs; takes another pass through the encoder.
        init_cfg: Initialisation of the student, such as a checkpoint of this model; the teacher
            becomes its copy.

    Raises:
        ValueError: Unknown ``label_source`` or ``predict_dtype``, or ``thresholds`` that are none.
    """

    def __init__(
        self,
        network: dict,
        mil_loss: dict,
        crf_loss: dict,
        data_preprocessor: dict,
        mirror_teacher: bool = False,
        mirror_student: bool = False,
        label_source: str = "student",
        flip_test: bool = False,
        refine_test: bool = False,
        color_weight: float = 4.0,
        thresholds: float | Sequence[float] = 0.1,
        crops_per_batch: int = 32,
        paste_masks: bool = True,
        predict_dtype: str = "float32",
        return_features: bool = False,
        init_cfg: dict | None = None,
    ) -> None:
        super().__init__(data_preprocessor, init_cfg)
        if label_source not in LABEL_SOURCES:
            raise ValueError(f"label_source is {label_source!r}, but must be in {LABEL_SOURCES}")
        if predict_dtype not in PREDICT_DTYPES:
            raise ValueError(f"predict_dtype is {predict_dtype!r}, but must be in {PREDICT_DTYPES}")
        values = thresholds if isinstance(thresholds, Sequence) else [thresholds]
        probabilities = all(isinstance(value, Real) and 0 <= value <= 1 for value in values)
        if len(values) not in (1, 3) or not probabilities:
            raise ValueError(
                f"thresholds is {thresholds!r}, but must be a probability from 0 to 1, or three, "
                "for small, medium and large boxes"
            )
        self.student = MODELS.build(network)
        self.teacher = MODELS.build(network).requires_grad_(False)
        self.mil_loss = MODELS.build(mil_loss)
        self.crf_loss = MODELS.build(crf_loss)
        self.mirror_teacher = mirror_teacher
        self.mirror_student = mirror_student
        self.label_source = label_source
        self.flip_test = flip_test
        self.refine_test = refine_test
        self.color_weight = color_weight
        self.thresholds = thresholds
        self.crops_per_batch = crops_per_batch
        self.paste_masks = paste_masks
        self.predict_dtype = getattr(torch, predict_dtype)
        self.return_features = return_features

    def init_weights(self) -> None:
        """Initialises the student and copies it to the teacher."""
        self.teacher.is_init = True  # no second read of pretrained weights
        super().init_weights()
        self.teacher.load_state_dict(self.student.state_dict())

    def get_layer_depth(self, param_name: str) -> tuple[int, int]:
        """Depth of a parameter and number of depths, for layer-wise learning-rate decay.

        Raises:
            ValueError: The encoder's layers have no depths, or not those of its own stages.
        """
        backbone = self.student.backbone
        if not isinstance(backbone, (VisionTransformer, ViTSAM, SwinTransformer)):
            raise ValueError(
                "layer-wise learning-rate decay needs a VisionTransformer, ViTSAM or "
                f"SwinTransformer of mmpretrain, but model.network.backbone is a "
                f"{type(backbone).__name__}"
            )
        # FSDP and checkpointing put their wrappers' names into those of parameters.
        name = re.sub(r"_(fsdp|checkpoint)_wrapped_module\.", "", param_name)
        return backbone.get_layer_depth(name, "student.backbone.")

    def cast_networks(self) -> None:
        """Casts the networks of a model that will only predict to ``predict_dtype``.

        Autocast would cast the weights again in every batch and keep what runs between layers in
        float32, which takes a sixth of a GPU's time, or of a CPU's. It stays with float16, in
        which that may overflow, and with encoders other than a ViT, which may make tensors of
        float32 themselves.
        """
        vit = isinstance(self.student.backbone, VisionTransformer)
        if vit and self.predict_dtype is torch.bfloat16:
            self.student.to(self.predict_dtype)
            self.teacher.to(self.predict_dtype)

    def train(self, mode: bool = True) -> MaskAutoLabeler:
        """Sets the mode of the student; the teacher never leaves evaluation mode."""
        super().train(mode)
        self.teacher.eval()
        return self

    def forward(
        self,
        inputs: dict[str, Tensor] | Tensor,
        data_samples: list[DetDataSample],
        mode: str = "tensor",
    ) -> dict[str, Tensor] | list[DetDataSample] | Tensor:
        """Dispatches to :meth:`loss`, :meth:`predict` or the bare logits (``'tensor'``).

        Raises:
            ValueError: Unknown ``mode``.
        """
        if mode == "loss":
            return self.loss(inputs, data_samples)
        if mode == "predict":
            return self.predict(inputs, data_samples)
        if mode == "tensor":
            return self.mask_logits(inputs, _gather(data_samples, "areas"))
        raise ValueError(f"mode is {mode!r}, but must be 'loss', 'predict' or 'tensor'")

    def loss(
        self, inputs: dict[str, Tensor], data_samples: list[DetDataSample]
    ) -> dict[str, Tensor]:
        """MIL and CRF loss of a batch of crops, always in float32.

        Args:
            inputs: Normalised ``student`` and ``teacher`` views, (B, 3, S, S) each, of the same
                crops with the same flip.
            data_samples: One per crop; ``gt_instances`` holds ``bboxes`` (1, 4) in the crop
                frame and ``areas`` (1,) in image pixels. Nothing else is read.

        Returns:
            ``loss_mil`` and ``loss_crf``, weighted and warmed up.
        """
        student_view = inputs["student"]
        areas = _gather(data_samples, "areas")
        # Mirrored in the same pass: DDP takes no second one of layers with checkpointing.
        views = [student_view, student_view.flip(3)] if self.mirror_student else [student_view]
        logits = self.student(torch.cat(views), areas.repeat(len(views)))
        with torch.no_grad():
            if self.mirror_teacher:
                teacher_logits = self.teacher(inputs["teacher"].flip(3), areas).flip(2)
            else:
                teacher_logits = self.teacher(inputs["teacher"], areas)

        with torch.autocast(logits.device.type, enabled=False):
            probs, teacher_probs = logits.float().sigmoid(), teacher_logits.float().sigmoid()
            if self.mirror_student:
                straight, mirrored = probs.chunk(2)
                probs = (straight + mirrored.flip(2)) / 2
            size = probs.shape[1:]
            bboxes = _gather(data_samples, "bboxes")
            bboxes = bboxes * (bboxes.new_tensor(size[::-1]).tile(2) / student_view.shape[-1])
            targets = box_masks(bboxes.to(probs.device, non_blocking=True), size)
            images = resize_maps(student_view.float(), size)
            loss_mil = self.mil_loss(probs, targets)
            loss_crf = self.crf_loss(probs, teacher_probs, targets, images)
        return dict(
            loss_mil=loss_mil * warmup_factor(self.mil_loss.warmup_iters),
            loss_crf=loss_crf * warmup_factor(self.crf_loss.warmup_iters),
        )

    @torch.no_grad()
    def predict(self, inputs: Tensor, data_samples: list[DetDataSample]) -> list[DetDataSample]:
        """A mask for every box, in the image frame.

        Args:
            inputs: Normalised crops of all images of the batch, shape (ΣN, 3, S, S), or
                (ΣN, V, 3, S, S): V crops of each box, by which masks are averaged.
            data_samples: One per image; ``gt_instances`` holds N ``crop_bboxes``,
                ``ori_bboxes``, ``areas`` and ``labels``, all in the image frame, and of V crops
                their ``view_bboxes`` (N, V, 4), the first of which are ``crop_bboxes``.

        Returns:
            The data samples, with ``pred_instances``: ``bboxes`` (N, 4), ``labels`` (N,),
            ``masks`` (N, H, W) as bool, and ``scores`` (N,), those of a detector where the boxes
            are its own, else the mean probability inside the mask; ``crop_bboxes`` (N, 4) and
            ``thresholds`` (N,); ``mask_quality`` (N,), see :func:`mask_quality`; and ``ann_ids``
            and ``ann_indices`` where the data set gives them. With ``paste_masks`` off there are,
            in place of masks and scores of its own, ``mask_probs`` (N, S, S) to paste. With
            ``return_features`` also ``features`` (N, C, h, w), unless N is 0: the encoder's last
            map of the teacher for the label source ``'teacher'``, else of the student. All are on
            the CPU; with ``paste_masks`` off and a GPU they are on their way, and there is a
            ``ready``.
        """
        if len(inputs):
            fields = self._predict_crops(inputs, data_samples)
        else:
            fields = dict.fromkeys(("mask_probs", "mask_quality", "thresholds"), torch.empty(0))
        ready = gpu_is_ready(inputs.device) if inputs.is_cuda else None
        if ready and self.paste_masks:
            ready()
            ready = None  # which no file could hold
        start = 0
        for sample in data_samples:
            stop = start + len(sample.gt_instances)
            pred = InstanceData(**{key: value[start:stop] for key, value in fields.items()})
            if ready:
                pred.set_metainfo(dict(ready=ready))
            sample.pred_instances = self._to_image(pred, sample)
            start = stop
        return data_samples

    def _predict_crops(
        self, inputs: Tensor, data_samples: list[DetDataSample]
    ) -> dict[str, Tensor]:
        areas = _gather(data_samples, "areas")
        thresholds = [threshold_for_area(self.thresholds, area) for area in areas.tolist()]
        thresholds = areas.new_tensor(thresholds)
        boxes = boxes_in_crops(data_samples)
        if inputs.ndim == 5:
            frames = [s.gt_instances.view_bboxes for s in data_samples if len(s.gt_instances)]
            frames = torch.cat(frames)
        fields: dict[str, Tensor] = {}
        for start in range(0, len(inputs), self.crops_per_batch):
            part = slice(start, start + self.crops_per_batch)
            if inputs.ndim == 4:
                crop, views = inputs[part], self.view_logits(inputs[part], areas[part])
            else:
                crop = inputs[part, 0]
                views = self._logits_of_crops(inputs[part], areas[part], frames[part])
            cells = boxes[part] * boxes.new_tensor(views.shape[:1:-1]).tile(2)
            cells = cells.to(crop.device, non_blocking=True)
            limits = thresholds[part].to(crop.device, non_blocking=True)
            logits, refined = views.mean(0), None
            if self.refine_test:
                field = self.crf_loss.mean_field_cfg
                refined = refine_logits(logits, limits, cells, crop, self.color_weight, **field)
                logits = refined
            found = dict(
                mask_probs=resize_maps(logits[:, None], crop.shape[2:])[:, 0].sigmoid(),
                mask_quality=mask_quality(views, limits, cells, crop, refined),
            )
            if self.return_features:
                network = self.teacher if self.label_source == "teacher" else self.student
                found["features"] = network.backbone(crop.to(self._dtype()))[-1].float()
            for key, value in found.items():
                if key not in fields:
                    # A GPU sends into pinned memory while it works on.
                    shape = len(inputs), *value.shape[1:]
                    fields[key] = torch.empty(shape, pin_memory=crop.is_cuda)
                fields[key][part].copy_(value, non_blocking=crop.is_cuda)
        return fields | dict(thresholds=thresholds)

    def _logits_of_crops(self, crops: Tensor, areas: Tensor, frames: Tensor) -> Tensor:
        """:meth:`view_logits` of V crops of each box, (B, V, 3, S, S), all in the first's frame."""
        frames = frames.to(crops.device, non_blocking=True)
        views = [
            resample_maps(self.view_logits(crop, areas), frame, frames[:, 0])
            for crop, frame in zip(crops.unbind(1), frames.unbind(1))
        ]
        return torch.cat(views)

    def _dtype(self) -> torch.dtype:
        return next(self.student.parameters()).dtype

    def mask_logits(self, crops: Tensor, areas: Tensor) -> Tensor:
        """Logits by ``label_source`` and ``flip_test``: (B, 3, S, S), (B,) → (B, 4h, 4w)."""
        return self.view_logits(crops, areas).mean(0)

    def view_logits(self, crops: Tensor, areas: Tensor) -> Tensor:
        """The logits that :meth:`mask_logits` is the mean of, mirrored ones turned back.

        Networks compute in ``predict_dtype``, whatever autocast there is around.

        Args:
            crops: Normalised, (B, 3, S, S).
            areas: Of the boxes, in image pixels, (B,).

        Returns:
            float32, (K, B, 4h, 4w): K networks, and as many again with ``flip_test``.
        """
        networks = dict(student=[self.student], teacher=[self.teacher]).get(
            self.label_source, [self.student, self.teacher]
        )
        crops = crops.to(self._dtype())
        mixed = self.predict_dtype is not crops.dtype
        with torch.autocast(crops.device.type, self.predict_dtype, enabled=mixed):
            logits = [network.predict(crops, areas) for network in networks]
            if self.flip_test:
                logits += [network.predict(crops.flip(3), areas).flip(2) for network in networks]
        # Infinities of half precision would interpolate to NaN.
        return torch.stack(logits).float().clamp(-HALF_LIMIT, HALF_LIMIT)

    def _to_image(self, pred: InstanceData, sample: DetDataSample) -> InstanceData:
        instances = sample.gt_instances.cpu()
        pred.bboxes, pred.labels = instances.ori_bboxes, instances.labels
        pred.crop_bboxes = instances.crop_bboxes
        for key in ("ann_ids", "ann_indices"):
            if key in instances:
                pred[key] = instances[key]
        if self.paste_masks:
            pred.masks = torch.zeros(len(instances), *sample.ori_shape, dtype=torch.bool)
            pred.scores = torch.zeros(len(instances))
            for i, mask in enumerate(pred.masks):
                pred.scores[i] = paste_mask(
                    pred.mask_probs[i],
                    pred.crop_bboxes[i].tolist(),
                    pred.bboxes[i].tolist(),
                    float(pred.thresholds[i]),
                    out=mask,
                )
            del pred.mask_probs  # whoever gathers predictions would run out of memory
        if "scores" in instances:
            pred.scores = instances.scores
        return pred


def boxes_in_crops(data_samples: list[DetDataSample]) -> Tensor:
    """Boxes of data samples as :meth:`MaskAutoLabeler.predict` takes them, in the crops' frame.

    Returns:
        (ΣN, 4), in crops of 1 × 1. No mask leaves its image, so what a box has outside is left out.
    """
    boxes = torch.cat(
        [clip_boxes_to_image(s.gt_instances.ori_bboxes, s.ori_shape) for s in data_samples]
    )
    crops = _gather(data_samples, "crop_bboxes")
    origin, extent = crops[:, :2], crops[:, 2:] - crops[:, :2]
    return (boxes - origin.tile(2)) / extent.tile(2)


def gpu_is_ready(device: torch.device) -> Callable[[], None]:
    """A function that waits until a GPU has done all that it was told until now."""
    event = torch.cuda.Event(blocking=True)  # who waits leaves the core to others
    event.record(torch.cuda.current_stream(device))
    return lambda: event.synchronize()  # a copy of a function, unlike an event's, is the same


def warmup_factor(warmup_iters: int) -> float:
    """Share of a loss weight that is due now: it rises linearly in the first epoch.

    After the first epoch, or outside a runner, the weight is whole.
    """
    hub = MessageHub.get_current_instance()
    if warmup_iters <= 0 or hub.get_info("epoch", 1) > 0:
        return 1.0
    return min(hub.get_info("iter", 0) / warmup_iters, 1.0)


def _gather(data_samples: list[DetDataSample], field: str) -> Tensor:
    return torch.cat([sample.gt_instances[field] for sample in data_samples])
