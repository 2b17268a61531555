# SPDX-License-Identifier: Apache-2.0
import json
import math

import numpy as np
import pytest
import torch

from mal_mmdet.evaluation import (
    MaskIoUMetric,
    boundary_iou,
    evaluate_label_files,
    evaluate_masks,
    mean_ious,
)
from mal_mmdet.evaluation.mask_iou import check_pairs
from mal_mmdet.labeling import encode_mask, write_json

HEIGHT, WIDTH = 120, 140
CATEGORIES = [dict(id=1, name="cat"), dict(id=2, name="bus"), dict(id=3, name="cup")]


def rectangle(x, y, w, h):
    mask = np.zeros((HEIGHT, WIDTH), dtype=bool)
    mask[y : y + h, x : x + w] = True
    return mask


def truth(specs):
    """(category, rectangle) for each annotation; the third is a polygon, the last a crowd."""
    annotations = []
    for i, (category, (x, y, w, h)) in enumerate(specs):
        segmentation = encode_mask(rectangle(x, y, w, h))
        if i == 2:
            segmentation = [[x, y, x + w, y, x + w, y + h, x, y + h]]
        annotations.append(
            dict(
                id=100 + i,
                image_id=1,
                category_id=category,
                bbox=[x, y, w, h],
                area=w * h,
                iscrowd=int(i == len(specs) - 1),
                segmentation=segmentation,
            )
        )
    image = dict(id=1, file_name="a.jpg", width=WIDTH, height=HEIGHT)
    return dict(images=[image], annotations=annotations, categories=CATEGORIES)


SPECS = [(1, (0, 0, 20, 20)), (1, (10, 10, 50, 50)), (2, (5, 5, 100, 110)), (2, (0, 0, 9, 9))]


def test_against_arrays():
    data = truth(SPECS)
    guesses = [(0, 0, 20, 10), (20, 10, 50, 50), (5, 5, 100, 110)]
    masks = {100 + i: encode_mask(rectangle(*guess)) for i, guess in enumerate(guesses)}
    ious = []
    for (_, spec), guess in zip(SPECS, guesses):
        a, b = rectangle(*spec), rectangle(*guess)
        ious.append((a & b).sum() / (a | b).sum())
    found = evaluate_masks(masks, data)
    assert found["num"] == 3 and found["num_missing"] == 0
    assert found["miou"] == pytest.approx(np.mean(ious))
    assert found["miou_category"] == pytest.approx(np.mean([np.mean(ious[:2]), ious[2]]))
    for size, iou in zip(("small", "medium", "large"), ious):
        assert found[f"miou_{size}"] == pytest.approx(iou) and found[f"num_{size}"] == 1


def test_by_category_group_and_boundary():
    """Means of lists written out by hand, for mask IoU and Boundary IoU alike."""
    specs = [*SPECS[:3], (2, (30, 30, 40, 40)), SPECS[-1]]
    data = truth(specs)
    guesses = [(0, 0, 20, 10), (20, 10, 50, 50), (5, 5, 90, 110)]  # and one is missing
    masks = {100 + i: encode_mask(rectangle(*guess)) for i, guess in enumerate(guesses)}
    groups = {"animals": ["cat"], "all": ["cat", "bus", "cup"], "cups": ["cup"]}
    found = evaluate_masks(masks, data, classwise=True, groups=groups, boundary=True)

    pairs = [(rectangle(*s), rectangle(*g)) for (_, s), g in zip(specs, guesses)]
    for prefix, ious in {
        "": [(a & b).sum() / (a | b).sum() for a, b in pairs] + [0.0],
        "boundary_": [boundary_iou(a, b) for a, b in pairs] + [0.0],
    }.items():
        cat, bus = sum(ious[:2]) / 2, sum(ious[2:]) / 2
        assert found[f"{prefix}miou"] == pytest.approx(sum(ious) / 4)
        assert found[f"{prefix}miou_small"] == pytest.approx(ious[0])
        assert found[f"{prefix}miou_category/cat"] == pytest.approx(cat)
        assert found[f"{prefix}miou_category/bus"] == pytest.approx(bus)
        assert found[f"{prefix}miou_group/animals"] == pytest.approx(cat)
        assert found[f"{prefix}miou_group/all"] == pytest.approx((cat + bus) / 2)
        assert math.isnan(found[f"{prefix}miou_group/cups"])
        assert f"{prefix}miou_category/cup" not in found
    assert found["boundary_miou"] != pytest.approx(found["miou"])
    numbers = {k: v for k, v in found.items() if k.startswith("num")}
    assert numbers == {
        "num": 4,
        "num_small": 1,
        "num_medium": 2,
        "num_large": 1,
        "num_missing": 1,
        "num_group/animals": 2,
        "num_group/all": 4,
        "num_group/cups": 0,
        "num_category/cat": 2,
        "num_category/bus": 2,
    }


def test_unasked_figures_are_left_out():
    found = evaluate_masks({}, truth(SPECS))
    assert not any("/" in key or "boundary" in key for key in found)


def test_metric_passes_its_options_on_and_checks_groups_first(tmp_path):
    (tmp_path / "truth.json").write_text(json.dumps(truth(SPECS)))
    options = dict(classwise=True, groups=dict(animals=["cat"]), boundary=True)
    metric = MaskIoUMetric(str(tmp_path / "truth.json"), **options)
    mask = torch.from_numpy(rectangle(0, 0, 20, 10))[None]
    metric.process({}, [dict(pred_instances=dict(masks=mask, ann_ids=[100]))])
    found = metric.evaluate(1)
    assert found["mask/miou_group/animals"] == found["mask/miou_category/cat"] == 0.25
    assert 0 < found["mask/boundary_miou"] < 1
    with pytest.raises(ValueError, match=r"groups\.animals has the unknown categories \['dog'\]"):
        MaskIoUMetric(str(tmp_path / "truth.json"), groups=dict(animals=["cat", "dog"]))


def test_a_missing_mask_counts_as_zero():
    data = truth(SPECS)
    found = evaluate_masks({100: data["annotations"][0]["segmentation"]}, data)
    assert found["miou"] == pytest.approx(1 / 3) and found["num_missing"] == 2


def test_no_instances_of_a_size_is_nan_not_zero():
    found = mean_ious(np.array([0.5]), np.array([1]), np.array([10.0]))
    assert found["miou_small"] == 0.5 and math.isnan(found["miou_large"])


def test_truth_without_masks_is_refused():
    data = truth(SPECS)
    del data["annotations"][1]["segmentation"]
    with pytest.raises(ValueError, match="annotation 101 of the ground truth has no mask"):
        evaluate_masks({}, data)


def test_masks_of_another_size_are_refused():
    data = truth(SPECS)
    wrong = encode_mask(np.ones((60, 70), dtype=bool))
    with pytest.raises(ValueError, match=r"annotation 100: expected a mask of .*\[60, 70\]"):
        evaluate_masks({100: wrong}, data)


def test_metric_needs_annotation_ids(tmp_path):
    sample = dict(pred_instances=dict(masks=torch.zeros(1, 4, 4)))
    with pytest.raises(ValueError, match="CocoBoxDataset"):
        MaskIoUMetric("truth.json").process({}, [sample])


def test_metric_and_files_agree(tmp_path):
    data = truth(SPECS)
    (tmp_path / "truth.json").write_text(json.dumps(data))
    masks = np.stack([rectangle(0, 0, 20, 10), rectangle(20, 10, 50, 50)])
    metric = MaskIoUMetric(str(tmp_path / "truth.json"))
    sample = dict(pred_instances=dict(masks=torch.from_numpy(masks), ann_ids=[100, 101]))
    metric.process({}, [sample])
    found = metric.evaluate(1)
    pred = json.loads(json.dumps(data))
    pred["annotations"] = pred["annotations"][:2]
    for ann, mask in zip(pred["annotations"], masks):
        ann["segmentation"] = encode_mask(mask)
    (tmp_path / "pred.json").write_text(json.dumps(pred))
    figures = evaluate_label_files(tmp_path / "pred.json", tmp_path / "truth.json")
    assert found["mask/miou"] == figures["miou"] == pytest.approx((0.5 + 2000 / 3000) / 3)
    pred["images"][0]["file_name"] = f"elsewhere/{data['images'][0]['file_name']}"
    (tmp_path / "pred.json").write_text(json.dumps(pred))
    assert evaluate_label_files(tmp_path / "pred.json", tmp_path / "truth.json") == figures
    pred["images"][0]["file_name"] = "another.jpg"
    (tmp_path / "pred.json").write_text(json.dumps(pred))
    with pytest.raises(ValueError, match=r"annotation 100 is on another\.jpg in .*do not belong"):
        evaluate_label_files(tmp_path / "pred.json", tmp_path / "truth.json")


def test_the_same_ids_of_other_boxes_are_refused(tmp_path):
    """Whatever the ids of images, and unless boxes have only been drawn again."""
    files = tmp_path / "pred.json", tmp_path / "truth.json"
    data = truth(SPECS)
    write_json(files[1], data)
    for image in data["images"]:
        image["id"] += 1000
    for ann in data["annotations"]:
        ann["image_id"] += 1000
        x, y, w, h = ann["bbox"]
        ann["bbox"] = [x - 1, y, w + 2, h + 1]
    data["annotations"][0]["source"] = "human"
    write_json(files[0], data)
    figures = evaluate_label_files(*files)
    assert figures["miou"] == 1 and figures["num_human"] == 1
    placeholder = json.loads(json.dumps(data))
    for ann in placeholder["annotations"]:
        ann["bbox"] = [0, 0, 0, 0]  # the masks count
    check_pairs(data, placeholder, *files)
    placeholder["annotations"][0] = None
    check_pairs(data, placeholder, *files)
    ids = [ann["id"] for ann in data["annotations"]]
    for ann, ann_id in zip(data["annotations"], [*ids[1:], ids[0]]):
        ann["id"] = ann_id
    write_json(files[0], data)
    with pytest.raises(ValueError, match=r"most of their boxes lie elsewhere \(median IoU 0"):
        evaluate_label_files(*files)


@pytest.mark.parametrize("counts", [[5, 1_000_000_000], "0_oo1"])
def test_a_mask_that_pycocotools_would_hang_on(counts):
    data = truth(SPECS)
    wrong = dict(data["annotations"][0]["segmentation"], counts=counts)
    with pytest.raises(ValueError, match="annotation 100: its mask is no RLE of the pixels"):
        evaluate_masks({100: wrong}, data)
    data["annotations"][0]["segmentation"] = wrong
    with pytest.raises(ValueError, match="annotation 100: its mask is no RLE of the pixels"):
        evaluate_masks({}, data)


@pytest.mark.parametrize(
    "change, words",
    [
        (None, r"annotations\[1\].* is None, expected an object"),
        (dict(id=[]), r"annotations\[1\].*its 'id' is \[\]"),
        (dict(image_id=99), r"annotations\[1\].*its image 99 is not in 'images'"),
        (dict(category_id=[1]), r"annotations\[1\].*its 'category_id' is \[1\]"),
        (dict(bbox="x"), r"annotations\[1\].*bbox is 'x'"),
    ],
)
def test_what_cannot_be_evaluated_is_named(tmp_path, change, words):
    sound, broken = tmp_path / "sound.json", tmp_path / "broken.json"
    data = truth(SPECS)
    sound.write_text(json.dumps(data))
    data["annotations"][1] = change and data["annotations"][1] | change
    broken.write_text(json.dumps(data))
    for files in ((sound, broken), (broken, sound)):
        with pytest.raises(ValueError, match=words):
            evaluate_label_files(*files)


def test_a_box_that_is_empty_does_not_keep_its_mask_from_being_compared():
    data = truth(SPECS)
    data["annotations"][0]["bbox"] = [3, 3, 0, 5]
    assert evaluate_masks({}, data)["num"] == 3


def test_parts_of_a_mask_that_are_no_polygons_are_skipped():
    """As loaders do, wherever they stand."""
    data = truth(SPECS)
    polygon = [10, 10, 40, 10, 40, 40, 10, 40]
    for odd in ([1, 2], [1, 2, 3, 4], []):
        for order in ([odd, polygon], [polygon, odd]):
            data["annotations"][0]["segmentation"] = order
            assert evaluate_masks({100: [polygon]}, data)["miou"] == pytest.approx(1 / 3)
