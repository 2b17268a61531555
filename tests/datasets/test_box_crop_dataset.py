# SPDX-License-Identifier: Apache-2.0
import copy
import json

import numpy as np
import pytest
import torch
from mmdet.registry import DATASETS
from mmdet.structures.bbox import BaseBoxes
from mmengine.dataset import pseudo_collate
from mmengine.structures import BaseDataElement
from torch.utils.data import DataLoader

from mal_mmdet.datasets import SeededSampler
from mal_mmdet.datasets.box_crop_dataset import box_sides
from mal_mmdet.labeling import read_coco
from tests.conftest import tiny_config


@pytest.fixture
def configs(demo, tmp_path):
    cfg = tiny_config(demo, tmp_path)
    return cfg.train_dataloader.dataset, cfg.test_dataloader.dataset


def test_one_sample_a_box_with_two_views(configs, demo):
    dataset = DATASETS.build(configs[0])
    assert len(dataset) == len(read_coco(demo / "boxes_train.json")["annotations"])
    sample = dataset[(3, 11)]
    for view in ("student", "teacher"):
        assert sample["inputs"][view].shape == (3, 32, 32)
        assert sample["inputs"][view].dtype == torch.uint8
    assert set(sample["data_samples"]) == {"student"}  # views share their box
    student = sample["data_samples"]["student"].gt_instances
    ann = read_coco(demo / "boxes_train.json")["annotations"][int(student.ann_indices)]
    assert student.areas.item() == np.float32(ann["bbox"][2]) * np.float32(ann["bbox"][3])
    boxes = {"bboxes", "ori_bboxes", "crop_bboxes", "areas", "labels"}
    assert set(student.keys()) == boxes | {"ann_ids", "ann_indices"}


def test_boxes_on_a_limit_of_size_belong_to_the_lower_one_wherever_they_lie():
    x, y = np.random.default_rng(0).uniform(0, 2000, (2, 1000)).round(2).tolist()
    for side in (2, 32, 96):
        # As a data set makes corners of a COCO box.
        sides = [box_sides((a, b, a + side, b + side)) for a, b in zip(x, y)]
        assert set(sides) == {(side, side)}
        assert any((a + side) - a > side for a in x)
    assert box_sides((512.0, 0.0, 512.0 + 1e-10, 3e-20)) == pytest.approx((1e-10, 3e-20), rel=0.2)


def test_the_flip_is_shared_and_moves_the_box(configs):
    dataset = DATASETS.build(configs[0])
    dataset.pipeline.transforms[2].prob = 0.0
    plain = dataset[(3, 11)]
    dataset.pipeline.transforms[2].prob = 1.0
    flipped = dataset[(3, 11)]
    views = plain["inputs"]["teacher"], flipped["inputs"]["teacher"]
    assert torch.equal(views[0].flip(2), views[1])
    boxes = [s["data_samples"]["student"].gt_instances.bboxes[0] for s in (plain, flipped)]
    expected = torch.stack([32 - boxes[0][2], boxes[0][1], 32 - boxes[0][0], boxes[0][3]])
    torch.testing.assert_close(boxes[1], expected)


def test_a_seed_fixes_the_sample_and_leaves_the_random_state_alone(configs):
    dataset = DATASETS.build(configs[0])
    np.random.seed(5)
    first = dataset[(2, 7)]
    after = np.random.rand()
    np.random.seed(5)
    assert np.random.rand() == after
    np.random.seed(99)
    again, other = dataset[(2, 7)], dataset[(2, 8)]
    for view in ("student", "teacher"):
        assert torch.equal(first["inputs"][view], again["inputs"][view])
    assert not torch.equal(first["inputs"]["teacher"], other["inputs"]["teacher"])


def test_workers_do_not_change_the_samples(configs):
    dataset = DATASETS.build(configs[0])
    batches = []
    for workers in (0, 2):
        sampler = SeededSampler(dataset, shuffle=True, seed=3)
        sampler.set_epoch(1)
        loader = DataLoader(
            dataset, 4, sampler=sampler, num_workers=workers, collate_fn=pseudo_collate
        )
        batches.append([torch.stack(b["inputs"]["student"]) for b in loader])
    assert all(torch.equal(a, b) for a, b in zip(*batches))


@pytest.mark.parametrize("boxes_per_image", [1, 2, 10])
def test_every_box_is_dealt_once_with_neighbours_of_its_image(configs, boxes_per_image):
    dataset = DATASETS.build(configs[0])
    images = dataset.boxes[:, 0]
    runs = sum(-(-count // boxes_per_image) for count in np.bincount(images))
    orders = []
    for seed, epoch in ((3, 0), (3, 0), (3, 1), (4, 0)):
        sampler = SeededSampler(dataset, seed=seed, boxes_per_image=boxes_per_image)
        sampler.set_epoch(epoch)
        order = [index for index, _ in sampler]
        assert sorted(order) == list(range(len(dataset)))
        # Runs of one image may meet by chance, but there are never more.
        assert np.count_nonzero(np.diff(images[order])) + 1 <= runs
        orders.append(order)
    assert orders[0] == orders[1] and orders[0] != orders[2] and orders[0] != orders[3]


def test_ranks_share_an_order_without_parting_neighbours(configs, monkeypatch):
    dataset = DATASETS.build(configs[0])
    whole = dict(SeededSampler(dataset, seed=3, boxes_per_image=10))
    dealt = []
    for rank in range(3):
        monkeypatch.setattr("mmengine.dataset.sampler.get_dist_info", lambda rank=rank: (rank, 3))
        sampler = SeededSampler(dataset, seed=3, boxes_per_image=10)
        share = list(sampler)
        assert len(share) == len(sampler)
        dealt += share
    assert dict(dealt) == whole  # seeds too: a sample does not depend on its rank
    images = dataset.boxes[[index for index, _ in dealt], 0]
    # Each of the two cuts parts one image at most, and rounding up repeats the first.
    assert np.count_nonzero(np.diff(images)) + 1 <= len(np.unique(images)) + 3


def test_neighbours_read_an_image_once_and_are_the_same_samples(configs):
    dataset, fresh = DATASETS.build(configs[0]), DATASETS.build(configs[0])
    read, load = [], dataset._load
    dataset._load = lambda image: read.append(image) or load(image)
    for index, seed in SeededSampler(dataset, seed=3, boxes_per_image=10):
        fresh._read = (-1, {})
        expected = fresh[(index, seed)]["inputs"]
        for view, pixels in dataset[(index, seed)]["inputs"].items():
            assert torch.equal(pixels, expected[view])
    assert sorted(read) == np.unique(dataset.boxes[:, 0]).tolist()


def test_no_box_of_an_image_is_refused(configs):
    with pytest.raises(ValueError, match="boxes_per_image is 0"):
        SeededSampler(DATASETS.build(configs[0]), boxes_per_image=0)
    for kind in (dict(type="RepeatDataset", times=2), dict(type="ConcatDataset")):
        inner = [configs[0]] if kind["type"] == "ConcatDataset" else configs[0]
        outer = DATASETS.build(kind | {"datasets" if isinstance(inner, list) else "dataset": inner})
        with pytest.raises(ValueError, match=f"put the {kind['type']} inside the BoxCropDataset"):
            SeededSampler(outer)


def test_nothing_in_a_training_sample_is_larger_than_its_crop(configs):
    """No mask or pixel of the whole image travels to the network."""
    sample = DATASETS.build(configs[0])[(3, 11)]
    sizes = []

    def look(value):
        if isinstance(value, (np.ndarray, torch.Tensor)):
            sizes.append(int(np.prod(value.shape)))
        elif isinstance(value, dict):
            [look(v) for v in value.values()]
        elif isinstance(value, (list, tuple)):
            [look(v) for v in value]
        elif isinstance(value, (BaseDataElement, BaseBoxes)):
            [look(v) for v in vars(value).values()]

    look(sample)
    pixels = 3 * 32 * 32
    assert sizes.count(pixels) == 2 and max(size for size in sizes if size != pixels) <= 4


def test_sampler_seeds_differ_by_epoch_and_index(configs):
    sampler = SeededSampler(list(range(50)), shuffle=True, seed=0)
    first = dict(sampler)
    assert sorted(first) == list(range(50)) and len(set(first.values())) == 50
    sampler.set_epoch(1)
    assert not set(dict(sampler).values()) & set(first.values())


def test_small_and_crowd_boxes_are_left_out_of_training(configs, demo, tmp_path, monkeypatch):
    coco = read_coco(demo / "boxes_train.json")
    coco["annotations"][0]["iscrowd"] = 1
    coco["annotations"][1]["bbox"][2:] = [2, 60]
    path = tmp_path / "boxes.json"
    path.write_text(json.dumps(coco))
    train, test = copy.deepcopy(configs)
    train.dataset.ann_file = test.dataset.ann_file = str(path)
    areas = [a["bbox"][2] * a["bbox"][3] for a in coco["annotations"][2:]]
    train.update(min_area=3000, min_side=2)
    texts = []
    monkeypatch.setattr(
        "mal_mmdet.datasets.box_crop_dataset.print_log", lambda text, logger: texts.append(text)
    )
    expected = sum(area > 3000 for area in areas)
    assert len(DATASETS.build(train)) == expected
    assert f"{expected} of {len(areas) + 1} boxes are used: those with an area over" in texts[0]
    # Labeling leaves out nothing but the crowd.
    assert len(DATASETS.build(test).boxes) == len(coco["annotations"]) - 1


def test_training_on_no_box_at_all_is_refused(configs):
    configs[0].update(min_area=1e6)
    with pytest.raises(ValueError, match=r"no box is left.*min_area=1000000\.0"):
        DATASETS.build(configs[0])


def test_wraps_a_concatenation(configs):
    part = configs[0].dataset
    number = len(DATASETS.build(configs[0]))
    configs[0].dataset = dict(type="ConcatDataset", datasets=[part, copy.deepcopy(part)])
    both = DATASETS.build(configs[0])
    assert len(both) == 2 * number
    first, again = both[(1, 5)], both[(number + 1, 5)]
    assert torch.equal(first["inputs"]["student"], again["inputs"]["student"])


def test_groups_hold_all_boxes_of_an_image(configs, demo):
    dataset = DATASETS.build(configs[1])
    coco = read_coco(demo / "boxes_val.json")
    assert len(dataset) == len(coco["images"])
    seen = []
    for k in range(len(dataset)):
        sample = dataset[k]
        instances = sample["data_samples"].gt_instances
        assert sample["inputs"].shape == (len(instances), 3, 32, 32)
        for box, ann_id in zip(instances.ori_bboxes.tolist(), instances.ann_ids):
            x, y, w, h = next(a["bbox"] for a in coco["annotations"] if a["id"] == ann_id)
            assert box == [x, y, x + w, y + h]
        assert torch.equal(instances.bboxes, instances.ori_bboxes)
        seen += instances.ann_indices.tolist()
    assert seen == list(range(len(coco["annotations"])))


def test_an_unreadable_image_stops_training_with_its_annotations(configs, demo, tmp_path):
    coco = read_coco(demo / "boxes_train.json")
    (tmp_path / "00001.jpg").write_bytes(b"no image")
    configs[0].dataset.data_prefix.img = str(tmp_path)
    dataset = DATASETS.build(configs[0])
    with pytest.raises(RuntimeError, match=r"00001\.jpg cannot be read.*annotations are \[1") as e:
        dataset[0]
    assert "00001.jpg" in str(e.value)
    last = len(coco["annotations"]) - 1
    with pytest.raises(RuntimeError, match=r"00008\.jpg cannot be read \(FileNotFoundError"):
        dataset[last]


def test_an_image_of_another_size_is_refused(configs, demo, tmp_path):
    coco = read_coco(demo / "boxes_train.json")
    coco["images"][0]["width"] = 300
    (tmp_path / "boxes.json").write_text(json.dumps(coco))
    configs[0].dataset.ann_file = str(tmp_path / "boxes.json")
    with pytest.raises(RuntimeError, match=r"320×320 pixels, but .* 300×320"):
        DATASETS.build(configs[0])[0]


def test_wraps_stock_data_sets(configs, demo):
    """Any mmdet data set serves; CocoDataset carries masks, and they stay behind."""
    classes = tuple(c["name"] for c in read_coco(demo / "boxes_train.json")["categories"])
    configs[0].dataset = dict(
        type="CocoDataset",
        metainfo=dict(classes=classes),
        data_root=str(demo),
        ann_file="instances_train.json",
        data_prefix=dict(img="train/"),
        pipeline=[dict(type="LoadImageFromFile")],
    )
    stock = DATASETS.build(configs[0])
    assert "mask" in stock.dataset.get_data_info(0)["instances"][0]
    sample = stock[(0, 1)]
    assert sample["inputs"]["student"].shape == (3, 32, 32)
    assert "masks" not in sample["data_samples"]["student"].gt_instances
