# SPDX-License-Identifier: Apache-2.0
import pytest

from mal_mmdet.labeling import LabelWriter


def test_mask_formats_that_cannot_be_written():
    with pytest.raises(ValueError, match=r"mask_format is 'png', expected one of \('rle', 'poly"):
        LabelWriter("boxes.json", "labels.json", mask_format="png")
    with pytest.raises(ValueError, match="a results file has its masks as RLE"):
        LabelWriter("boxes.json", "labels.json", "results.json", mask_format="polygon")


def test_an_image_that_was_done_and_now_fails_hides_no_lost_one(tmp_path):
    """Its neighbour had failed, so both were tried again, and now it cannot be read either."""
    writer = LabelWriter(ann_file="boxes.json", out_file=str(tmp_path / "labels.json"))
    writer.shards.write([0], [(0, dict(area=1))])
    writer.shards.write([0], [(0, dict(problem="no image"))], failed=True)
    with pytest.raises(RuntimeError, match="the labels of 1 of 2 images are not in"):
        writer.evaluate(2)
