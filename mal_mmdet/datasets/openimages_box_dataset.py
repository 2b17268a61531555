# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import os.path as osp

from mmdet.datasets import OpenImagesDataset
from mmdet.registry import DATASETS


@DATASETS.register_module()
class OpenImagesBoxDataset(OpenImagesDataset):
    """mmdet's OpenImages with the right path for its last image.

    The stock class gives a last image that has one box alone the path of the image before it
    (seen in mmdet 3.5.1), and so its box the wrong pixels.
    """

    def load_data_list(self) -> list[dict]:
        """As the parent's."""
        images = super().load_data_list()
        last = images[-1]
        last["img_path"] = osp.join(self.data_prefix["img"], f"{last['img_id']}.jpg")
        return images
