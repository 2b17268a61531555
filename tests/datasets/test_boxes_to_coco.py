# SPDX-License-Identifier: Apache-2.0
from typing import ClassVar

import numpy as np
import pytest
from mmcv.transforms import LoadImageFromFile
from mmengine.config import Config
from mmengine.dataset import BaseDataset
from PIL import Image

from mal_mmdet.datasets import BoxCropDataset, boxes_to_coco, build_training_boxes
from tests.conftest import ROOT
from tests.tiny_sets import config_path, make_openimages, make_voc, set_data_root


def source(name, root):
    cfg = Config.fromfile(config_path(name))
    set_data_root(cfg.train_dataloader, root)
    return cfg


class OneImage(BaseDataset):
    """A data set of one image whose size it does not know, and two boxes."""

    METAINFO: ClassVar = dict(classes=("thing",))

    def load_data_list(self):
        boxes = [
            dict(bbox=[1, 2, 11, 22], bbox_label=0, ignore_flag=0),
            dict(bbox=[0.5, 0.5, 4, 3], bbox_label=0, ignore_flag=1),
        ]
        return [dict(img_path=self.ann_file, instances=boxes)]


def test_voc_with_difficult_objects_and_no_image_at_all(tmp_path):
    make_voc(tmp_path)
    for path in tmp_path.glob("*/JPEGImages/*.jpg"):
        path.unlink()  # the size stands in the XML: no image is opened
    coco = boxes_to_coco(build_training_boxes(source("voc", tmp_path)), tmp_path)
    assert coco["images"] == [
        dict(id=1, file_name="VOC2007/JPEGImages/000005.jpg", width=120, height=90),
        dict(id=2, file_name="VOC2012/JPEGImages/2008_000008.jpg", width=120, height=90),
    ]
    dog = dict(id=1, image_id=1, category_id=12, bbox=[5, 10, 60, 50], area=3000, iscrowd=0)
    cat = dict(id=2, image_id=1, category_id=8, bbox=[0, 0, 99, 79], area=7821, iscrowd=0)
    plane = dict(id=3, image_id=2, category_id=1, bbox=[40, 20, 70, 60], area=4200, iscrowd=0)
    assert coco["annotations"] == [dog, {**cat, "difficult": 1}, plane]
    assert len(coco["categories"]) == 20
    assert coco["categories"][11] == dict(id=12, name="dog")


def test_openimages_with_a_group(tmp_path):
    make_openimages(tmp_path)
    cfg = source("openimages", tmp_path)
    cfg.train_dataloader.dataset.type = BoxCropDataset  # as in a config in Python
    coco = boxes_to_coco(build_training_boxes(cfg), tmp_path / "OpenImages")
    assert [i["file_name"] for i in coco["images"]] == ["train/000a1b.jpg", "train/000c2d.jpg"]
    assert [a["iscrowd"] for a in coco["annotations"]] == [0, 1, 0]
    expected = [[30, 18, 60, 54], [0, 0, 120, 90], [60, 0, 60, 45]]
    np.testing.assert_allclose([a["bbox"] for a in coco["annotations"]], expected)
    assert [a["category_id"] for a in coco["annotations"]] == [2, 1, 1]
    assert coco["categories"] == [dict(id=1, name="Tortoise"), dict(id=2, name="Container")]


@pytest.mark.parametrize("orientation, size", [(1, (60, 40)), (6, (40, 60))])
def test_an_unknown_size_is_read_from_the_header(tmp_path, orientation, size):
    """The size is that of the image as it is loaded: turned, where its camera was."""
    path = tmp_path / "a.jpg"
    exif = Image.Exif()
    exif[0x0112] = orientation
    pixels = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path, exif=exif)
    loaded = LoadImageFromFile()(dict(img_path=str(path)))["img"]
    assert loaded.shape[:2] == size[::-1]
    # Cut off after its header: decoding would fail.
    path.write_bytes(path.read_bytes()[:-200])
    coco = boxes_to_coco(OneImage(ann_file=str(path)), tmp_path)
    assert coco["images"] == [dict(id=1, file_name="a.jpg", width=size[0], height=size[1])]
    # What other data sets than VOC say to ignore becomes a crowd.
    assert [a["iscrowd"] for a in coco["annotations"]] == [0, 1]
    assert [a["bbox"] for a in coco["annotations"]] == [[1, 2, 10, 20], [0.5, 0.5, 3.5, 2.5]]


def test_relative_folders(tmp_path, monkeypatch):
    make_openimages(tmp_path)
    dataset = build_training_boxes(source("openimages", tmp_path))
    monkeypatch.chdir(tmp_path)
    coco = boxes_to_coco(dataset, "OpenImages/train/")
    assert coco["images"][0]["file_name"] == "000a1b.jpg"


def test_images_outside_the_folder_are_refused(tmp_path):
    make_voc(tmp_path)
    dataset = build_training_boxes(source("voc", tmp_path))
    with pytest.raises(ValueError, match=r"2008_000008\.jpg does not lie in .*VOC2007; name a"):
        boxes_to_coco(dataset, tmp_path / "VOC2007")


def test_a_repeated_data_set_is_refused(tmp_path):
    make_openimages(tmp_path)
    cfg = source("openimages", tmp_path)
    inner = cfg.train_dataloader.dataset.dataset
    cfg.train_dataloader.dataset.dataset = dict(type="RepeatDataset", times=2, dataset=inner)
    with pytest.raises(ValueError, match=r"000a1b\.jpg occurs twice.*without RepeatDataset"):
        boxes_to_coco(build_training_boxes(cfg), tmp_path)


def test_a_config_of_phase_2_is_refused():
    path = ROOT / "configs/mask_rcnn/mask-rcnn_demo-mal.py"
    words = r"mask-rcnn_demo-mal\.py is of type 'CocoDataset', expected 'BoxCropDataset': give"
    with pytest.raises(ValueError, match=words):
        build_training_boxes(Config.fromfile(path))
    with pytest.raises(ValueError, match="is of type None"):
        build_training_boxes(Config(dict(train_dataloader=None)))
