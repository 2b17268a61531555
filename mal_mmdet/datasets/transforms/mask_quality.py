# SPDX-License-Identifier: Apache-2.0
"""The quality of masks on its way from the annotations to the model.

Stock transforms drop, add and reorder boxes, labels and masks, and know of no other field. So the
quality travels in the upper half of the labels: whatever happens to an instance, it keeps it.
"""

from __future__ import annotations

import numpy as np
from mmcv.transforms import BaseTransform
from mmdet.registry import TRANSFORMS

SHIFT = 32
"""Bits of a label below the quality."""
STEPS = 10**6
"""The quality travels in whole millionths, plus one: 0 means that there is none."""


@TRANSFORMS.register_module()
class LoadMaskQuality(BaseTransform):
    """Ties the ``mask_quality`` of each instance to its label; follows ``LoadAnnotations``.

    Reads ``instances`` as :class:`MaskQualityDataset` gives them; one without ``mask_quality`` is
    certain, 1. Until :class:`UnpackMaskQuality`, ``gt_bboxes_labels``, int64 (N,), are no classes.

    Raises:
        ValueError: The labels are not those of ``instances``.
    """

    def transform(self, results: dict) -> dict:
        instances = results["instances"]
        labels = results.get("gt_bboxes_labels")
        if labels is None or len(labels) != len(instances):
            count = "no" if labels is None else len(labels)
            raise ValueError(
                f"{count} labels for {len(instances)} annotations: LoadMaskQuality belongs "
                "right behind LoadAnnotations(with_label=True)"
            )
        qualities = np.array([i.get("mask_quality", 1) for i in instances], dtype=np.float64)
        codes = np.rint(qualities * STEPS).astype(np.int64) + 1
        results["gt_bboxes_labels"] = labels + (codes << SHIFT)
        return results


@TRANSFORMS.register_module()
class UnpackMaskQuality(BaseTransform):
    """Gives labels and qualities a field each; follows ``PackDetInputs``.

    ``gt_instances`` and ``ignored_instances`` get back their ``labels``, int64 (N,), and gain
    ``mask_qualities``, float32 (N,), in [0, 1].

    Raises:
        ValueError: An instance has not been through :class:`LoadMaskQuality`.
    """

    def transform(self, results: dict) -> dict:
        sample = results["data_samples"]
        for instances in (sample.gt_instances, sample.ignored_instances):
            if "labels" not in instances:  # nothing is ignored where there are no flags
                continue
            codes = instances.labels >> SHIFT
            if (codes == 0).any():
                raise ValueError(
                    f"{int((codes == 0).sum())} of {len(codes)} instances of {sample.img_path} "
                    "have no mask quality: put LoadMaskQuality behind every LoadAnnotations"
                )
            instances.labels = instances.labels & (2**SHIFT - 1)
            instances.mask_qualities = (codes - 1) / STEPS
        return results
