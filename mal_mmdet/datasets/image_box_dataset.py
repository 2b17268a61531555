# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

from mmdet.registry import DATASETS
from torch.utils.data import Dataset


@DATASETS.register_module()
class ImageBoxDataset(Dataset):
    """Images and boxes that are in memory, for a :class:`BoxCropDataset` to wrap.

    Args:
        images: One entry an image, as mmdet's data sets have them: ``img_path``, or the pixels
            in ``img``, and ``instances`` with ``bbox`` (x0, y0, x1, y1) and ``bbox_label``.
        pipeline: Loads the image of an entry into ``img``.
    """

    metainfo: ClassVar[dict] = {}

    def __init__(self, images: Sequence[dict[str, Any]], pipeline: Callable[[dict], dict]) -> None:
        self.images = images
        self.pipeline = pipeline

    def full_init(self) -> None:
        """Everything is there already."""

    def get_data_info(self, index: int) -> dict[str, Any]:
        """The entry of an image; not a copy."""
        return self.images[index]

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.pipeline(dict(self.images[index]))
