# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from mmdet.datasets import CocoDataset
from mmdet.registry import DATASETS


@DATASETS.register_module()
class MaskQualityDataset(CocoDataset):
    """A ``CocoDataset`` whose ``instances`` also hold the ``mask_quality`` of their annotation.

    Annotations without one, such as human ones that labeling kept, give instances without one;
    :class:`LoadMaskQuality` takes these masks as certain.

    Raises:
        ValueError: No annotation that is learned from has ``mask_quality``, or one is no number in
            [0, 1].
    """

    def load_data_list(self) -> list[dict]:
        data_list = super().load_data_list()
        if not any("mask_quality" in i for image in data_list for i in image["instances"]):
            raise ValueError(
                f"no usable annotation of {self.ann_file} has mask_quality, which this config "
                "trains with; write the labels with tools/generate_labels.py, or train a config "
                "whose data set is a CocoDataset"
            )
        return data_list

    def parse_data_info(self, raw_data_info: dict) -> dict:
        # The parent skips some annotations without saying which, so it gets them one by one.
        data_info = super().parse_data_info({**raw_data_info, "raw_ann_info": []})
        for ann in raw_data_info["raw_ann_info"]:
            parsed = super().parse_data_info({**raw_data_info, "raw_ann_info": [ann]})
            for instance in parsed["instances"]:
                if "mask_quality" in ann:
                    instance["mask_quality"] = _checked_quality(ann)
                data_info["instances"].append(instance)
        return data_info


def _checked_quality(ann: dict) -> float:
    quality = ann["mask_quality"]
    if type(quality) not in (int, float) or not 0 <= quality <= 1:  # also refuses NaN and bool
        raise ValueError(
            f"mask_quality of annotation {ann['id']!r} is {quality!r}; expected a number from 0 to "
            "1. Mend it, or remove it if the mask is certain"
        )
    return float(quality)
