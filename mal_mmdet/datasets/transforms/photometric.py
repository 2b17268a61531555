# SPDX-License-Identifier: Apache-2.0
"""The costly augmentations of colour, in whole numbers and by OpenCV alone."""

from __future__ import annotations

import cv2
import mmcv
import numpy as np
from mmcv.transforms import BaseTransform
from mmdet.registry import TRANSFORMS
from mmpretrain.datasets import ColorJitter


@TRANSFORMS.register_module()
class FastColorJitter(ColorJitter):
    """mmpretrain's ``ColorJitter``, which draws the same numbers, in a fraction of its time.

    It rounds after each of the four changes where the original truncates. Its arguments are the
    original's.

    Required keys: ``img``, uint8, BGR. Changed keys: ``img``.
    """

    def transform(self, results: dict) -> dict:
        img = results["img"]
        order, *factors = self._rand_params()
        brightness, contrast, saturation, hue = factors
        changes = (
            lambda img: blend(img, 0, brightness),
            lambda img: blend(img, round(mmcv.bgr2gray(img).mean()), contrast),
            lambda img: blend(img, mmcv.gray2bgr(mmcv.bgr2gray(img)), saturation),
            lambda img: mmcv.adjust_hue(img, hue),
        )
        for index in order:
            if factors[index] is not None:
                img = changes[index](img)
        results["img"] = img
        return results


@TRANSFORMS.register_module()
class RandomGaussianBlur(BaseTransform):
    """Blurs some images with a Gaussian of random width.

    Required keys: ``img``. Changed keys: ``img``.

    Args:
        prob: Share of the images to blur.
        sigma: Range of the standard deviation, in pixels.
    """

    def __init__(self, prob: float = 0.5, sigma: tuple[float, float] = (0.1, 2.0)) -> None:
        self.prob = prob
        self.sigma = sigma

    def transform(self, results: dict) -> dict:
        if np.random.rand() < self.prob:
            sigma = np.random.uniform(*self.sigma)
            results["img"] = cv2.GaussianBlur(results["img"], (0, 0), sigma)
        return results


def blend(img: np.ndarray, other: np.ndarray | float, factor: float) -> np.ndarray:
    """``factor · img + (1 − factor) · other``, rounded and clipped to uint8.

    Args:
        img: uint8, shape (H, W, 3).
        other: The same, or one level for all of it.
        factor: At least 0; over 1 it leads away from ``other``.
    """
    if np.isscalar(other):
        return cv2.addWeighted(img, factor, img, 0, (1 - factor) * other)
    return cv2.addWeighted(img, factor, other, 1 - factor, 0)
