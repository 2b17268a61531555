# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from mmdet.registry import MODELS
from mmdet.structures import DetDataSample
from mmengine.logging import MessageHub
from mmengine.model import BaseModel
from mmengine.structures import InstanceData
from mmpretrain.models import SwinTransformer, VisionTransformer, ViTSAM
from torch import Tensor

from mal_mmdet.labeling import paste_mask, threshold_for_area
from mal_mmdet.structures import box_masks

LABEL_SOURCES = ("student", "teacher", "both")


@MODELS.register_module()
class MaskAutoLabeler(BaseModel):
    """Mask Auto-Labeler: learns a mask for every box from boxes alone.

    Student and teacher are two copies of one network. The student learns by gradient; the
    teacher follows it through mmdet's ``MeanTeacherHook`` and only helps to make the target of
    the CRF loss.

    Args:
        network: Config of a :class:`MaskNetwork`.
        mil_loss, crf_loss: Configs of the two losses.
        data_preprocessor: Config of a :class:`CropDataPreprocessor`.
        label_source: Whose logits make the labels: ``'student'``, ``'teacher'`` or ``'both'``
            (their mean).
        flip_test: Whether to average the logits with those of the mirrored crop.
        thresholds: A mask is where the probability exceeds this; one value, or three for boxes
            up to 32² pixels, up to 96² pixels and larger.
        crops_per_batch: Most crops in one forward pass of prediction.
        return_features: Whether predictions hold the encoder's map of every crop, which
            :class:`ClusteringScoreMetric` needs; takes another pass through the encoder.
        init_cfg: Initialisation of student and teacher together, such as a checkpoint.
    """

    def __init__(
        self,
        network: dict,
        mil_loss: dict,
        crf_loss: dict,
        data_preprocessor: dict,
        label_source: str = "student",
        flip_test: bool = False,
        thresholds: float | Sequence[float] = 0.1,
        crops_per_batch: int = 32,
        return_features: bool = False,
        init_cfg: dict | None = None,
    ) -> None:
        super().__init__(data_preprocessor, init_cfg)
        if label_source not in LABEL_SOURCES:
            raise ValueError(f"label_source is {label_source!r}, but must be in {LABEL_SOURCES}")
        self.student = MODELS.build(network)
        self.teacher = MODELS.build(network).requires_grad_(False)
        self.mil_loss = MODELS.build(mil_loss)
        self.crf_loss = MODELS.build(crf_loss)
        self.label_source = label_source
        self.flip_test = flip_test
        self.thresholds = thresholds
        self.crops_per_batch = crops_per_batch
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
        return backbone.get_layer_depth(param_name, "student.backbone.")

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
        """Dispatches to :meth:`loss`, :meth:`predict` or the bare logits (``'tensor'``)."""
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
        logits = self.student(student_view, areas)
        with torch.no_grad():
            teacher_logits = self.teacher(inputs["teacher"], areas)

        with torch.autocast(logits.device.type, enabled=False):
            probs, teacher_probs = logits.float().sigmoid(), teacher_logits.float().sigmoid()
            size = probs.shape[1:]
            bboxes = _gather(data_samples, "bboxes")
            bboxes = bboxes * (bboxes.new_tensor(size[::-1]).tile(2) / student_view.shape[-1])
            targets = box_masks(bboxes, size)
            images = F.interpolate(student_view.float(), size, mode="bilinear")
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
            inputs: Normalised crops of all images of the batch, shape (ΣN, 3, S, S).
            data_samples: One per image; ``gt_instances`` holds N ``crop_bboxes``,
                ``ori_bboxes``, ``areas`` and ``labels``, all in the image frame.

        Returns:
            The data samples, with ``pred_instances``: ``bboxes`` (N, 4), ``labels`` (N,),
            ``masks`` (N, H, W) as bool, ``scores`` (N,), those of a detector where the boxes
            are its own, else the mean probability inside the mask,
            and ``ann_ids`` and ``ann_indices`` where the data set gives them. With
            ``return_features`` also ``features`` (N, C, h, w), unless N is 0: the encoder's
            last map of the teacher for the label source ``'teacher'``, else of the student.
        """
        probs, features = [], []
        if len(inputs):
            areas = _gather(data_samples, "areas").split(self.crops_per_batch)
            for crops, some in zip(inputs.split(self.crops_per_batch), areas):
                logits = self.mask_logits(crops, some).float()
                logits = F.interpolate(logits[:, None], crops.shape[2:], mode="bilinear")[:, 0]
                probs += logits.sigmoid().cpu()
                if self.return_features:
                    network = self.teacher if self.label_source == "teacher" else self.student
                    features += network.backbone(crops)[-1].float().cpu()
        for sample in data_samples:
            count = len(sample.gt_instances)
            sample.pred_instances = self._to_image(probs[:count], sample)
            probs = probs[count:]
            if features[:count]:
                sample.pred_instances.features = torch.stack(features[:count])
                features = features[count:]
        return data_samples

    def mask_logits(self, crops: Tensor, areas: Tensor) -> Tensor:
        """Logits by ``label_source`` and ``flip_test``: (B, 3, S, S), (B,) → (B, 4h, 4w)."""
        networks = dict(student=[self.student], teacher=[self.teacher]).get(
            self.label_source, [self.student, self.teacher]
        )
        logits = [network(crops, areas) for network in networks]
        if self.flip_test:
            logits += [network(crops.flip(3), areas).flip(2) for network in networks]
        return torch.stack(logits).mean(0)

    def _to_image(self, probs: list[Tensor], sample: DetDataSample) -> InstanceData:
        instances = sample.gt_instances
        shape = sample.ori_shape
        masks = torch.zeros(len(instances), *shape, dtype=torch.bool)
        scores = torch.zeros(len(instances))
        for i, (prob, crop_bbox, bbox, area) in enumerate(
            zip(
                probs,
                instances.crop_bboxes.tolist(),
                instances.ori_bboxes.tolist(),
                instances.areas.tolist(),
            )
        ):
            threshold = threshold_for_area(self.thresholds, area)
            scores[i] = paste_mask(prob, crop_bbox, bbox, threshold, out=masks[i])
        pred = InstanceData(
            bboxes=instances.ori_bboxes, labels=instances.labels, masks=masks, scores=scores
        )
        for key in ("ann_ids", "ann_indices", "scores"):
            if key in instances:
                pred[key] = instances[key]
        return pred


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
