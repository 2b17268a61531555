# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from mmcv.transforms import BaseTransform
from mmdet.registry import TRANSFORMS
from mmdet.structures.bbox import HorizontalBoxes

from mal_mmdet.structures import bbox_to_crop, crop_and_resize, expand_bbox
from mal_mmdet.structures.crop_geometry import BORDERS

SAMPLERS = ("paired", "independent")


@TRANSFORMS.register_module()
class ExpandBBox(BaseTransform):
    """Expands a box by a fixed margin, as labeling does.

    Required keys: ``ori_bbox``. Added keys: ``crop_bbox``, and for several margins
    ``view_bboxes``, int64, (V, 4).

    Args:
        margin: Every half-extent is multiplied by ``1 + margin``. Several margins make as many
            crops of the box, for prediction alone: their logits are averaged, and the mask comes
            in the frame of the first, which is ``crop_bbox``.

    Raises:
        ValueError: No margin, or one that is not finite or under 0, where a crop would not hold
            its box.
    """

    def __init__(self, margin: float | Sequence[float] = 0.3) -> None:
        self.margins = np.atleast_1d(np.asarray(margin, dtype=np.float64))
        valid = np.isfinite(self.margins) & (self.margins >= 0)
        if self.margins.ndim > 1 or not self.margins.size or not valid.all():
            raise ValueError(f"margin is {margin!r}, but must be a number from 0 up, or several")

    def transform(self, results: dict) -> dict:
        views = [expand_bbox(results["ori_bbox"], margins) for margins in self.sample_margins()]
        results["crop_bbox"] = views[0]
        if len(views) > 1:
            results["view_bboxes"] = np.stack(views)
        return results

    def sample_margins(self) -> np.ndarray:
        """Margins of left, top, right and bottom for each crop, shape (V, 4)."""
        return np.tile(self.margins[:, None], 4)


@TRANSFORMS.register_module()
class RandomExpandBBox(ExpandBBox):
    """Expands each side of a box by a random margin, as training does (paper, Sec. 3.2).

    Args:
        margin: Largest margin m: 1.2 in the released system, 0.2 in the paper.
        sampler: ``'paired'``, as in the released system: the sides of one axis draw from
            U(0, m) each and share a factor g ~ U(0, 1), one side takes g of its margin and the
            other 1 − g. ``'independent'``, as in the paper: every side draws from U(0, m) for
            itself, where the paper's θ is 1 + m.

    Raises:
        ValueError: Unknown sampler, or a margin that is not one number from 0 up.
    """

    def __init__(self, margin: float, sampler: str = "paired") -> None:
        super().__init__(margin)
        if len(self.margins) > 1:
            raise ValueError(f"margin is {margin!r}, but training takes one number, the largest")
        if sampler not in SAMPLERS:
            raise ValueError(f"sampler is {sampler!r}, but must be one of {SAMPLERS}")
        self.sampler = sampler

    def sample_margins(self) -> np.ndarray:
        margins = np.random.uniform(0, self.margins[0], 4)
        if self.sampler == "paired":
            share = np.random.uniform(0, 1, 2)
            margins *= np.concatenate([share, 1 - share])
        return margins[None]


@TRANSFORMS.register_module()
class CropBBox(BaseTransform):
    """Cuts the expanded box out of the image and moves the box into the crop frame.

    Required keys: ``img``, ``ori_bbox``, ``crop_bbox``. Changed keys: ``img`` (S × S × 3),
    ``img_shape``, ``gt_bboxes`` (crop frame, clipped to the image, since outside it nothing is
    foreground whatever fills the pixels). Where there are ``view_bboxes``, ``other_views`` is
    added: the crops of all but the first.

    Args:
        size: Side S of the crop in pixels.
        border: What fills the part outside the image: ``'reflect'`` or ``'wrap'``.

    Raises:
        ValueError: Unknown border.
    """

    def __init__(self, size: int = 512, border: str = "reflect") -> None:
        if border not in BORDERS:
            raise ValueError(f"border is {border!r}, but must be one of {BORDERS}")
        self.size = size
        self.border = border

    def transform(self, results: dict) -> dict:
        crop_bbox = results["crop_bbox"]
        img = results["img"]
        height, width = img.shape[:2]
        results["img"] = crop_and_resize(img, crop_bbox, self.size, self.border)
        if "view_bboxes" in results:
            others = results["view_bboxes"][1:]
            results["other_views"] = [
                crop_and_resize(img, view, self.size, self.border) for view in others
            ]
        results["img_shape"] = (self.size, self.size)
        inside = results["ori_bbox"].clip(0, [width, height, width, height])
        results["gt_bboxes"] = HorizontalBoxes(bbox_to_crop(inside, crop_bbox, self.size)[None])
        return results
