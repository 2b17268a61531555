# SPDX-License-Identifier: Apache-2.0
import copy
import importlib.util
import json
from pathlib import Path

import mmdet
import numpy as np
import pytest
from mmdet.registry import DATASETS
from PIL import Image
from pycocotools import mask as mask_utils

from mal_mmdet.labeling import encode_mask, find_problems, merge_masks, read_vis, split_frames

WIDTH, HEIGHT = 64, 48
LICENCE = dict(id=1, name="none")


@pytest.fixture
def vis():
    """Two videos, of 3 and 2 frames; no object is in the first video's second frame."""
    videos = [
        dict(id=7, width=WIDTH, height=HEIGHT, length=3, file_names=names("v7", 3), note="kept"),
        dict(id=4, width=WIDTH, height=HEIGHT, length=2, file_names=names("v4", 2)),
    ]
    panda, person = [4, 5, 30, 20], [20.5, 10.25, 16.0, 24.0]
    tracks = [
        dict(id=31, video_id=7, category_id=2, iscrowd=0, bboxes=[panda, None, [8, 6, 30, 20]]),
        dict(id=12, video_id=4, category_id=1, iscrowd=0, bboxes=[None, person], occlusion="kept"),
        dict(id=13, video_id=7, category_id=1, iscrowd=0, bboxes=[None, None, person]),
    ]
    return dict(
        info=dict(version="1"),
        licenses=[LICENCE],
        videos=videos,
        categories=[dict(id=1, name="person"), dict(id=2, name="giant_panda")],
        annotations=tracks,
    )


def names(video, number):
    return [f"{video}/{i:05d}.jpg" for i in range(number)]


def labels_for(coco):
    """A label file with the upper half of every box as its mask."""
    labels = copy.deepcopy(coco)
    for ann in labels["annotations"]:
        ann["segmentation"] = encode_mask(half(ann["bbox"]))
        ann["area"] = int(mask_utils.area(ann["segmentation"]))
    return labels


def half(bbox):
    x, y, w, h = (int(v) for v in bbox)
    mask = np.zeros((HEIGHT, WIDTH), dtype=bool)
    mask[y : y + h // 2, x : x + w] = True
    return mask


def test_split_numbers_frames_and_boxes_by_their_places(vis):
    before = copy.deepcopy(vis)
    coco = split_frames(vis)
    assert vis == before
    images = [(i["id"], i["file_name"]) for i in coco["images"]]
    # Frames 2 (without a box) and 4 (likewise) are left out, and keep their numbers.
    assert images == [(1, "v7/00000.jpg"), (3, "v7/00002.jpg"), (5, "v4/00001.jpg")]
    assert all((i["width"], i["height"]) == (WIDTH, HEIGHT) for i in coco["images"])
    boxes = [(a["id"], a["image_id"], a["category_id"], a["area"]) for a in coco["annotations"]]
    assert boxes == [(1, 1, 2, 600), (3, 3, 2, 600), (5, 5, 1, 384), (8, 3, 1, 384)]
    assert coco["annotations"][1]["bbox"] == [8, 6, 30, 20]
    assert coco["categories"] == vis["categories"]
    assert find_problems(coco) == {}


def test_split_hands_on_no_mask(vis):
    vis["annotations"][0]["segmentations"] = [encode_mask(half([0, 0, 9, 9])), None, None]
    vis["annotations"][0]["areas"] = [36, None, None]
    text = json.dumps(split_frames(vis))
    assert "segmentation" not in text and '"area": 36' not in text


def test_merge_puts_masks_in_their_frames_and_keeps_the_rest(vis):
    before = copy.deepcopy(vis)
    merged, missing = merge_masks(vis, labels_for(split_frames(vis)))
    assert missing == 0 and vis == before
    for old, new in zip(vis["annotations"], merged["annotations"], strict=True):
        segmentations, areas = new.pop("segmentations"), new.pop("areas")
        assert new == old
        for bbox, rle, area in zip(old["bboxes"], segmentations, areas, strict=True):
            if bbox is None:
                assert rle is None and area is None
            else:
                np.testing.assert_array_equal(mask_utils.decode(rle), half(bbox))
                assert area == half(bbox).sum()
    assert {k: v for k, v in merged.items() if k != "annotations"} == {
        k: v for k, v in vis.items() if k != "annotations"
    }


def test_merge_leaves_out_what_was_not_labeled(vis):
    labels = labels_for(split_frames(vis))
    labels["annotations"] = [a for a in labels["annotations"] if a["id"] != 3]
    merged, missing = merge_masks(vis, labels)
    track = merged["annotations"][0]
    assert missing == 1 and track["id"] == 31
    assert track["bboxes"][1:] == track["segmentations"][1:] == track["areas"][1:] == [None, None]
    assert track["segmentations"][0] and vis["annotations"][0]["bboxes"][2]


def test_masks_of_low_quality_are_not_learned_from(vis):
    """As ``--low-quality ignore`` marks them."""
    labels = labels_for(split_frames(vis))
    next(a for a in labels["annotations"] if a["id"] == 3)["iscrowd"] = 1
    merged, missing = merge_masks(vis, labels)
    track = merged["annotations"][0]
    assert missing == 1 and track["segmentations"][0]
    assert track["bboxes"][2] is track["segmentations"][2] is track["areas"][2] is None


def test_a_crowd_keeps_its_masks(vis):
    old = [encode_mask(half([0, 0, 9, 9])), None, encode_mask(half([0, 0, 8, 8]))]
    vis["annotations"][0].update(iscrowd=1, segmentations=old, areas=[36, None, 32])
    coco = split_frames(vis)
    assert [a["iscrowd"] for a in coco["annotations"]] == [1, 1, 0, 0]
    merged, _ = merge_masks(vis, labels_for(coco))
    assert merged["annotations"][0] == vis["annotations"][0]
    del vis["annotations"][0]["segmentations"]
    merged, _ = merge_masks(vis, labels_for(coco))
    assert merged["annotations"][0]["segmentations"][0] == encode_mask(half([4, 5, 30, 20]))


def test_labels_of_another_file_are_refused(vis):
    labels = labels_for(split_frames(vis))
    vis["annotations"].reverse()
    words = r"annotation 3 of the labels has the bbox \[8, 6, 30, 20\], but .* has \[20\.5, .*split"
    with pytest.raises(ValueError, match=words):
        merge_masks(vis, dict(labels, annotations=labels["annotations"][1:]))
    labels["annotations"][0]["id"] = 99
    with pytest.raises(ValueError, match=r"annotation 99 .* has None in its place"):
        merge_masks(vis, labels)


def test_a_file_without_masks_is_refused(vis):
    with pytest.raises(ValueError, match=r"annotation 1 of the labels has no mask.*generate_labe"):
        merge_masks(vis, split_frames(vis))


@pytest.mark.parametrize(
    "change, words",
    [
        (dict(id=None), r"annotations\[0\] of the labels .* has no number as 'id'"),
        (dict(segmentation=dict(size=[HEIGHT, WIDTH])), "annotation 1 of the labels: expected a m"),
        (
            dict(segmentation=dict(size=[HEIGHT, WIDTH], counts=[5])),
            "of the labels: its mask is no RLE",
        ),
        (dict(segmentation=dict(size=[HEIGHT, WIDTH], counts="o" * 20)), "its mask is no RLE"),
        (dict(segmentation=dict(size=[2, 3], counts=[6])), "of the size"),
    ],
)
def test_masks_that_loaders_could_not_read_are_refused(vis, change, words):
    labels = labels_for(split_frames(vis))
    labels["annotations"][0] |= change
    with pytest.raises(ValueError, match=words):
        merge_masks(vis, labels)


@pytest.mark.parametrize(
    "change, words",
    [
        (lambda v: v.pop("annotations"), r"no list 'annotations'; expected YouTube-VIS's format"),
        (lambda v: v.update(videos=None), "no list 'videos'"),
        (lambda v: v["videos"][1].pop("file_names"), r"videos\[1\] of .* has no 'file_names'"),
        (lambda v: v["videos"][0].pop("width"), r"videos\[0\] of .* has no 'width'.*'height'"),
        (lambda v: v["annotations"][2].pop("bboxes"), r"annotations\[2\] of .* has no 'bboxes'"),
        (lambda v: v["annotations"][0]["bboxes"].pop(), "31 in .* has 2 bboxes, .* 7 has 3 frames"),
        (lambda v: v["annotations"][0].update(video_id=5), "video 5 of annotation 31 .* not in 'v"),
        (lambda v: v["annotations"][0].update(id=12), "ids of annotations in .* are not unique"),
        (lambda v: v["annotations"].append("text"), r"annotations\[3\] of .* has no 'id'"),
    ],
)
def test_files_that_are_no_youtube_vis_files(vis, tmp_path, change, words):
    path = tmp_path / "vis.json"
    path.write_text(json.dumps(vis))
    assert read_vis(path) == vis
    change(vis)
    path.write_text(json.dumps(vis))
    with pytest.raises(ValueError, match=words):
        read_vis(path)


def test_stock_youtube_vis_reads_the_masks(vis, tmp_path):
    """Through mmdet's own converter and data set, as phase 2 does."""
    labels = labels_for(split_frames(vis))
    labels["annotations"] = [a for a in labels["annotations"] if a["id"] != 8]
    merged, _ = merge_masks(vis, labels)
    (tmp_path / "train.json").write_text(json.dumps(merged))
    for video in vis["videos"]:
        for name in video["file_names"]:
            (tmp_path / name).parent.mkdir(exist_ok=True)
            Image.new("RGB", (WIDTH, HEIGHT)).save(tmp_path / name)
    tool = Path(mmdet.__file__).parent / ".mim/tools/dataset_converters/youtubevis2coco.py"
    spec = importlib.util.spec_from_file_location("youtubevis2coco", tool)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.convert_vis(str(tmp_path), str(tmp_path), "2019")
    steps = [
        dict(type="LoadImageFromFile"),
        dict(type="LoadTrackAnnotations", with_mask=True),
    ]
    dataset = DATASETS.build(
        dict(
            type="YouTubeVISDataset",
            dataset_version="2019",
            ann_file=str(tmp_path / "youtube_vis_2019_train.json"),
            data_prefix=dict(img_path=str(tmp_path)),
            test_mode=True,
            pipeline=[
                dict(type="TransformBroadcaster", transforms=steps),
                dict(type="PackTrackInputs"),
            ],
        )
    )
    found = {}
    for i in range(len(dataset)):
        for sample in dataset[i]["data_samples"].video_data_samples:
            masks, classes = sample.gt_instances.masks.to_ndarray(), sample.gt_instances.labels
            found[str(Path(sample.img_path).relative_to(tmp_path))] = masks, classes.tolist()
    expected = {
        "v7/00000.jpg": ([[4, 5, 30, 20]], [1]),
        "v7/00001.jpg": ([], []),
        "v7/00002.jpg": ([[8, 6, 30, 20]], [1]),
        "v4/00000.jpg": ([], []),
        "v4/00001.jpg": ([[20.5, 10.25, 16, 24]], [0]),
    }
    assert set(found) == set(expected)
    for name, (boxes, classes) in expected.items():
        assert found[name][1] == classes
        for mask, bbox in zip(found[name][0], boxes, strict=True):
            np.testing.assert_array_equal(mask, half(bbox))
