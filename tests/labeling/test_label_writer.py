# SPDX-License-Identifier: Apache-2.0
import pytest

from mal_mmdet.labeling import LabelWriter


def test_mask_formats_that_cannot_be_written():
    with pytest.raises(ValueError, match=r"mask_format is 'png', expected one of \('rle', 'poly"):
        LabelWriter("boxes.json", "labels.json", mask_format="png")
    with pytest.raises(ValueError, match="a results file has its masks as RLE"):
        LabelWriter("boxes.json", "labels.json", "results.json", mask_format="polygon")
