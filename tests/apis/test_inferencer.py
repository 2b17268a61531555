# SPDX-License-Identifier: Apache-2.0
"""MALInferencer: the masks of labeling, for whatever a Python user has at hand."""

import copy
import doctest
import json
import os
from pathlib import Path

import mmcv
import numpy as np
import pytest
import torch
from mmcv.transforms import LoadImageFromFile
from mmdet.apis import DetInferencer
from mmdet.registry import MODELS
from mmdet.structures import DetDataSample
from mmengine.config import Config
from mmengine.structures import InstanceData
from PIL import Image
from pycocotools import mask as mask_utils

from mal_mmdet.apis import MALInferencer, generate_labels, inferencer
from mal_mmdet.labeling import read_coco, write_json
from tests.conftest import ROOT, tiny_config

DEMO = "mal_vit-demo_1xb16_demo"
BOX = [20, 30, 90, 100]


def save_weights(cfg, path, **more):
    torch.manual_seed(0)
    model = MODELS.build(cfg.model)
    model.init_weights()
    torch.save(dict(state_dict=model.state_dict(), **more), path)
    return path


@pytest.fixture(scope="module")
def job(demo, tmp_path_factory):
    """Arguments of generate_labels: tiny network, weights, the demo's training boxes."""
    folder = tmp_path_factory.mktemp("job")
    cfg = tiny_config(demo, folder / "work", **{"model.flip_test": True})
    cfg.model.crops_per_batch = 2
    return cfg, save_weights(cfg, folder / "mal.pth"), demo / "boxes_train.json", demo / "train"


@pytest.fixture(scope="module")
def labels(job, tmp_path_factory):
    """What generate_labels writes."""
    out = tmp_path_factory.mktemp("labels") / "labels.json"
    assert generate_labels(*job, out) == 0
    return read_coco(out)


@pytest.fixture(scope="module")
def infer(job):
    return MALInferencer(job[0], job[1], device="cpu", show_progress=False)


@pytest.fixture
def photo():
    small = np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return mmcv.imresize(small, (160, 120))


def boxes_by_file(coco):
    """Corners of the boxes, images in the order of the annotations."""
    names = {image["id"]: image["file_name"] for image in coco["images"]}
    boxes = {}
    for ann in coco["annotations"]:
        x, y, w, h = ann["bbox"]
        boxes.setdefault(names[ann["image_id"]], []).append([x, y, x + w, y + h])
    return boxes


def masks(result):
    return [mask for prediction in result["predictions"] for mask in prediction["masks"]]


def test_masks_of_a_coco_file_are_those_of_labeling(job, labels, infer):
    *_, ann_file, images = job
    counts = [len(boxes) for boxes in boxes_by_file(labels).values()]
    assert max(counts) > 2  # an image is more than a pass
    by_id = {ann["id"]: ann for ann in labels["annotations"]}
    found = {}
    for prediction in infer(images, ann_file)["predictions"]:
        fields = zip(prediction["ann_ids"], prediction["masks"], prediction["mask_quality"])
        for ann_id, mask, quality in fields:
            found[ann_id] = mask
            assert by_id[ann_id]["mask_quality"] == round(quality, 4)
    assert found == {ann_id: ann["segmentation"] for ann_id, ann in by_id.items()}


def test_masks_in_bfloat16_are_those_of_labeling(job, tmp_path):
    cfg, checkpoint, ann_file, images = job
    out = tmp_path / "labels.json"
    generate_labels(*job, out, predict_dtype="bfloat16")
    expected = {ann["id"]: ann["segmentation"] for ann in read_coco(out)["annotations"]}
    cfg = copy.deepcopy(cfg)
    cfg.model.predict_dtype = "bfloat16"
    cfg.test_dataloader.dataset.dataset.pipeline[0].type = LoadImageFromFile  # as in Python
    infer = MALInferencer(cfg, weights=checkpoint, device="cpu", show_progress=False)
    found = {}
    for prediction in infer(images, ann_file)["predictions"]:
        found |= dict(zip(prediction["ann_ids"], prediction["masks"]))
    assert found == expected


def test_boxes_of_any_form_give_the_same_masks(job, labels, infer, tmp_path):
    *_, images = job
    boxes = boxes_by_file(labels)
    paths = [images / name for name in boxes]
    expected = [ann["segmentation"] for ann in labels["annotations"]]
    arrays = [np.array(b) for b in boxes.values()]
    assert masks(infer(paths, list(boxes.values()))) == expected
    assert masks(infer([str(path) for path in paths], arrays)) == expected
    assert masks(infer([mmcv.imread(str(path)) for path in paths], arrays)) == expected
    assert masks(infer(paths, [torch.tensor(b, dtype=torch.float64) for b in arrays])) == expected
    assert masks(infer(paths, [dict(bboxes=b, labels=[1] * len(b)) for b in arrays])) == expected
    given = [InstanceData(bboxes=torch.tensor(b), scores=torch.ones(len(b))) for b in arrays]
    assert masks(infer(paths, given)) == expected
    samples = [DetDataSample(pred_instances=instances) for instances in given]
    assert masks(infer(paths, dict(predictions=samples))) == expected
    assert sorted(boxes) == sorted(path.name for path in images.iterdir())
    in_order = infer(images, [boxes[name] for name in sorted(boxes)])["predictions"]
    assert [p["img_path"] for p in in_order] == [str(images / name) for name in sorted(boxes)]
    by_path = {p["img_path"]: p["masks"] for p in in_order}
    assert [m for path in paths for m in by_path[str(path)]] == expected


def test_one_image_is_labeled_as_a_file_of_it_alone(job, infer, tmp_path):
    cfg, weights, ann_file, images = job
    coco = read_coco(ann_file)
    first = coco["annotations"][0]["image_id"]
    coco["annotations"] = [ann for ann in coco["annotations"] if ann["image_id"] == first]
    write_json(tmp_path / "boxes.json", coco)
    generate_labels(cfg, weights, tmp_path / "boxes.json", images, tmp_path / "labels.json")
    ((name, boxes),) = boxes_by_file(coco).items()
    expected = [ann["segmentation"] for ann in read_coco(tmp_path / "labels.json")["annotations"]]
    assert masks(infer(images / name, boxes)) == expected
    # The longest file name that the path ends with counts; the crowd is left out.
    coco["images"].append(coco["images"][0] | dict(id="other", file_name=f"train/{name}"))
    coco["images"].append(dict(id="nameless", width=5, height=5))
    coco["annotations"].append(
        dict(id="crowd", image_id="other", category_id=1, bbox=[0, 0, 20, 20], iscrowd=1)
    )
    coco["annotations"].append(coco["annotations"][0] | dict(id="last", image_id="other"))
    write_json(tmp_path / "boxes.json", coco)
    (prediction,) = infer(images / name, tmp_path / "boxes.json")["predictions"]
    assert prediction["ann_ids"] == ["last"]


def test_masks_are_arrays_rles_or_tensors_of_the_image(infer, photo):
    boxes = [[20, 30, 90, 100], [-5, -5, 40, 30.5]]
    (rle,) = infer(photo, boxes)["predictions"]
    (array,) = infer(photo, boxes, mask_format="array")["predictions"]
    (sample,) = infer(photo, boxes, return_datasamples=True)["predictions"]
    assert array["masks"].dtype == bool and array["masks"].shape == (2, 120, 160)
    np.testing.assert_array_equal(array["masks"], [mask_utils.decode(m) for m in rle["masks"]])
    np.testing.assert_array_equal(array["masks"], sample.pred_instances.masks)
    assert sample.pred_instances.masks.dtype == torch.bool
    assert not array["masks"][0, :, :20].any() and array["masks"][0, 30:100, 20:90].any()
    assert rle["bboxes"] == boxes and rle["labels"] == [0, 0] and rle["img_path"] is None
    assert all(0 < value <= 1 for value in rle["scores"] + rle["mask_quality"])
    assert "ann_ids" not in rle
    json.dumps(rle)


@pytest.mark.parametrize("margin", [0.3, [0.3, 0.1]])
def test_images_without_boxes_keep_their_place(infer, photo, demo, margin, monkeypatch):
    monkeypatch.setitem(infer.cfg.test_dataloader.dataset.pipeline[0], "margin", margin)
    path = next((demo / "val").iterdir())
    boxes = [[], [BOX], np.empty((0, 4)), [BOX], []]
    for batch_size in (1, 3):
        predictions = infer(
            [photo, photo, path, photo[:110], photo], boxes, batch_size, mask_format="array"
        )["predictions"]
        assert [p["masks"].shape[:2] for p in predictions[:2]] == [(0, 120), (1, 120)]
        assert predictions[2]["img_path"] == str(path) and not len(predictions[2]["masks"])
        assert predictions[3]["masks"].shape == (1, 110, 160)
        assert not any("ann_ids" in p for p in predictions)
    assert infer([photo], [[]], return_vis=True)["visualization"][0].shape == photo.shape


def test_batches_hold_so_many_boxes(infer, photo, monkeypatch):
    sizes = []
    predict = infer.model.student.predict

    def spy(crops, areas):
        sizes.append(len(crops))
        return predict(crops, areas)

    monkeypatch.setattr(infer.model.student, "predict", spy)
    boxes = [[BOX] * count for count in (1, 2, 5, 1, 1)]
    infer([photo] * 5, boxes)  # each pass once more, mirrored
    assert sizes[::2] == [1, 2, 2, 2, 1, 2]
    sizes.clear()
    infer([photo] * 5, boxes, batch_size=10)
    assert sizes[::2] == [10]
    sizes.clear()
    infer([photo] * 5, boxes, batch_size=3)
    assert sizes[::2] == [3, 3, 2, 2]


def test_detector_results(infer, demo, capsys):
    """What a DetInferencer returns for a folder, as dictionaries and as data samples."""
    cfg = Config.fromfile(ROOT / "configs/faster_rcnn/faster-rcnn_demo.py")
    cfg.merge_from_dict({"model.test_cfg.rcnn.score_thr": 0.0, "model.backbone.init_cfg": None})
    cfg.test_dataloader.dataset.update(data_root=str(demo), ann_file="instances_val.json")
    cfg.model.test_cfg.rcnn.max_per_img = 5
    with pytest.warns(UserWarning, match="Checkpoint is not loaded"):
        detector = DetInferencer(cfg, device="cpu", show_progress=False)
    folder = str(demo / "val")
    detected = detector(folder)
    found = infer(folder, detected, pred_score_thr=0.0)["predictions"]
    files = sorted(os.path.join(folder, name) for name in os.listdir(folder))
    assert sorted(prediction["img_path"] for prediction in found) == files
    assert sum(len(prediction["masks"]) for prediction in found)
    for prediction, boxes in zip(found, detected["predictions"]):
        assert boxes == detector(prediction["img_path"])["predictions"][0]
        for key in ("bboxes", "labels", "scores"):
            np.testing.assert_allclose(prediction[key], boxes[key], rtol=1e-6)
    samples = detector(folder, return_datasamples=True)
    again = infer(folder, samples, pred_score_thr=0.0)["predictions"]
    assert [p["masks"] for p in again] == [p["masks"] for p in found]


def test_weak_and_empty_detections_are_left_out(infer, photo):
    boxes = [BOX, [0, 0, 50, 50], [30, 30, 30, 60], [5, 5, 60, 60]]
    entry = dict(bboxes=boxes, labels=[3, 1, 0, 2], scores=[0.9, 0.2, 0.9, 0.3])
    (prediction,) = infer(photo, dict(predictions=[entry]))["predictions"]
    assert prediction["labels"] == [3, 2] and prediction["bboxes"] == [boxes[0], boxes[3]]
    np.testing.assert_allclose(prediction["scores"], [0.9, 0.3])
    (prediction,) = infer(photo, entry, pred_score_thr=0.5)["predictions"]
    assert prediction["labels"] == [3]


def test_pictures_and_files(infer, photo, tmp_path, monkeypatch):
    for name in ("a/1.png", "b/1.png"):
        (tmp_path / name).parent.mkdir()
        Image.fromarray(photo).save(tmp_path / name)
    inputs, out = [tmp_path / "a/1.png", photo[..., ::-1], tmp_path / "b/1.png"], tmp_path / "out"
    number = f"{infer.num_arrays:08d}"
    result = infer(inputs, [[BOX], [BOX], []], out_dir=out, return_vis=True)
    written = {str(path.relative_to(out)) for path in out.rglob("*") if path.is_file()}
    names = ("a/1", number, "b/1")
    assert written == {f"preds/{n}.json" for n in names} | {f"vis/{n}.jpg" for n in names}
    assert json.loads((out / "preds/a/1.json").read_text()) == result["predictions"][0]
    assert list(result["predictions"][0]) == ["img_path", *inferencer.FIELDS[:5]]
    drawn, turned, bare = result["visualization"]
    assert np.abs(bare.astype(int) - photo).mean() < 10  # before 3.11 Matplotlib resamples it
    for picture, mask in zip((drawn, turned), masks(result)):
        inside = mask_utils.decode(mask) > 0
        assert (picture != bare).any(2)[inside].mean() > 0.9
        np.testing.assert_array_equal(picture[105:], bare[105:])  # below the line of the box
    saved = np.asarray(Image.open(out / "vis/a/1.jpg")).astype(int)
    assert saved.shape == photo.shape and np.abs(saved - drawn).mean() < 3
    assert infer(photo, [BOX], out_dir=tmp_path / "p", no_save_vis=True)["visualization"] == []
    assert [path.name for path in (tmp_path / "p").iterdir()] == ["preds"]
    infer(photo, [BOX], out_dir=tmp_path / "v", no_save_pred=True)
    assert [path.name for path in (tmp_path / "v").iterdir()] == ["vis"]
    with pytest.raises(ValueError, match="several images would be written to out_dir as 1;"):
        infer([inputs[0], inputs[0]], [[BOX], [BOX]], out_dir=tmp_path / "twice")
    shown = []
    monkeypatch.setattr(
        infer.visualizer, "show", lambda image, win_name, wait_time: shown.append(wait_time)
    )
    infer(inputs, [[BOX], [BOX], []], show=True, wait_time=0.5)
    assert shown == [0.5] * 3


def test_pictures_name_the_categories_of_a_coco_file(job, infer, monkeypatch):
    *_, ann_file, images = job
    names, texts = {c["name"] for c in read_coco(ann_file)["categories"]}, []
    draw = infer.visualizer.draw_texts
    monkeypatch.setattr(
        infer.visualizer, "draw_texts", lambda t, *a, **k: texts.append(t) or draw(t, *a, **k)
    )
    result = infer(images, ann_file, return_vis=True)
    assert len(texts) == len(masks(result))
    assert {text.rsplit(":")[0] for text in texts} <= names


def test_progress(job, photo, capsys):
    infer = MALInferencer(job[0], job[1], device="cpu")
    infer(photo, [BOX])
    assert "Inference" in capsys.readouterr().out
    infer.show_progress = False
    infer(photo, [BOX])
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("boxes", "message"),
    [
        ([[1, 2, np.nan, 9]], r"box 0 of inputs\[0\] .* holds NaN or infinity"),
        ([BOX, [0, 0, 5, np.inf]], r"box 1 of inputs\[0\] .* holds NaN or infinity"),
        ([[160, 0, 170, 20]], "lies outside its image of 160×120 pixels"),
        ([[0, 0, 600, 20]], "more than three times as large as its image"),
        ([[20, 30, 20, 50]], "is empty: width and height must be positive"),
        ([[50, 30, 20, 50]], "is empty: width and height must be positive"),
        (BOX, r"boxes of inputs\[0\] have shape \(4,\); expected \(N, 4\)"),
        ([[1, 2, 3, 4, 0.9]], r"have shape \(1, 5\); expected \(N, 4\)"),
        ([[1, 2, 3, 4], [1, 2]], r"boxes of inputs\[0\] are no array of numbers"),
        (None, r"boxes of inputs\[0\] "),
        ([["a", "b", "c", "d"]], r"boxes of inputs\[0\] are no array of numbers"),
        (dict(boxes=[BOX]), r"have no 'bboxes', only \['boxes'\]"),
        (dict(bboxes=[BOX], labels=[1, 2]), r"labels of inputs\[0\] have shape \(2,\); .*\(1,\)"),
        (dict(bboxes=[BOX], scores=[[1.0]]), r"scores of inputs\[0\] have shape \(1, 1\)"),
        (dict(predictions=[]), "1 images have boxes for 0; expected a list with those of each"),
    ],
)
def test_boxes_that_cannot_be_used(infer, photo, boxes, message):
    with pytest.raises(ValueError, match=message):
        infer(photo, boxes)


def test_images_that_cannot_be_used(infer, photo, demo, tmp_path):
    with pytest.raises(ValueError, match="2 images have boxes for 1; expected a list"):
        infer([photo, photo], [[BOX]])
    with pytest.raises(ValueError, match="1 images have boxes for 3; expected a list"):
        infer([photo], 3)
    with pytest.raises(ValueError, match=r"is an array of uint8 with shape \(120, 160\)"):
        infer(photo[..., 0], [BOX])
    with pytest.raises(ValueError, match=r"inputs\[1\] is an array of float64 with shape"):
        infer([photo, photo / 255], [[BOX], [BOX]])
    with pytest.raises(ValueError, match="5 is a int; expected a file or an array"):
        infer(5, [BOX])
    with pytest.raises(ValueError, match=r"missing\.jpg cannot be read \(FileNotFoundError"):
        infer("missing.jpg", [BOX])
    (tmp_path / "text.jpg").write_text("no image")
    with pytest.raises(ValueError, match=r"text\.jpg cannot be read \(UnidentifiedImageError"):
        infer(tmp_path / "text.jpg", [BOX])
    whole = next((demo / "val").iterdir()).read_bytes()
    (tmp_path / "half.jpg").write_bytes(whole[:200])
    with pytest.raises(ValueError, match=r"half\.jpg cannot be read"):
        infer([photo, tmp_path / "half.jpg"], [[BOX], [[0, 0, 9, 9]]])
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="empty has no images; expected one of"):
        infer(tmp_path / "empty", [])
    with pytest.raises(ValueError, match="mask_format is 'polygon', expected one of"):
        infer(photo, [BOX], mask_format="polygon")
    with pytest.raises(ValueError, match="batch_size is 0, expected at least one box"):
        infer(photo, [BOX], 0)
    assert infer([], []) == dict(predictions=[], visualization=[])


def test_coco_files_that_do_not_fit(job, infer, photo, tmp_path, caplog):
    *_, ann_file, images = job
    with pytest.raises(FileNotFoundError, match=r"nowhere\.json does not exist"):
        infer(images, "nowhere.json")
    with pytest.raises(ValueError, match="belong to files, got a ndarray as image"):
        infer(photo, ann_file)
    with pytest.raises(ValueError, match=r"has no image whose file name .*photo\.jpg ends with"):
        infer(tmp_path / "photo.jpg", ann_file)
    coco = read_coco(ann_file)
    name = coco["images"][0]["file_name"]
    (prediction,) = infer(images / name, ann_file)["predictions"]
    renamed = copy.deepcopy(coco)
    renamed["images"][0]["file_name"] = f"./{name}"
    write_json(tmp_path / "renamed.json", renamed)
    assert infer(images / name, tmp_path / "renamed.json")["predictions"] == [prediction]
    renamed["images"][1]["file_name"] = name
    write_json(tmp_path / "twice.json", renamed)
    with pytest.raises(ValueError, match=rf"twice\.json has several images .* {name}"):
        infer(images / name, tmp_path / "twice.json")
    coco["annotations"] = []
    write_json(tmp_path / "none.json", coco)
    (prediction,) = infer(images / name, tmp_path / "none.json")["predictions"]
    assert prediction["ann_ids"] == prediction["masks"] == []
    assert infer(images, tmp_path / "none.json")["predictions"] == []
    image = coco["images"][0]
    coco["images"][0] = image | dict(width=image["width"] + 1)
    box = dict(image_id=image["id"], category_id=coco["categories"][0]["id"], iscrowd=0)
    coco["annotations"] = [box | dict(id=1, bbox=[1, 1, 20, 20])]
    write_json(tmp_path / "size.json", coco)
    with pytest.raises(ValueError, match="but its annotation file says"):
        infer(images, tmp_path / "size.json")
    coco["images"][0] = image
    coco["annotations"].append(box | dict(id=2, bbox=[1, 1, 0, 20]))
    write_json(tmp_path / "empty.json", coco)
    (prediction,) = infer(images, tmp_path / "empty.json")["predictions"]
    assert prediction["ann_ids"] == [1]


def test_predictions_that_are_not_finite(job, photo):
    infer = MALInferencer(job[0], job[1], device="cpu", show_progress=False)
    with torch.no_grad():
        infer.model.student.decoder.instance_head[0].weight.fill_(np.nan)
    with pytest.raises(ValueError, match="prediction for box 0 of None is not finite"):
        infer(photo, [BOX])


def test_models_that_cannot_be_used(job, tmp_path):
    weights = job[1]
    near = r"mal_vit-base-ma is neither .*; near are mal_vit-base-mae, "
    with pytest.raises(ValueError, match=near):
        MALInferencer("mal_vit-base-ma", weights, device="cpu")
    with pytest.raises(ValueError, match=r"zzz is neither a config file nor a model of mal_mmdet;"):
        MALInferencer("zzz", weights, device="cpu")
    with pytest.raises(ValueError, match="no weights: name a checkpoint"):
        MALInferencer(DEMO, device="cpu")
    with pytest.raises(FileNotFoundError, match=r"missing\.pth"):
        MALInferencer(DEMO, tmp_path / "missing.pth", device="cpu")
    with pytest.raises(ValueError, match=r"weights are not of the config's network"):
        MALInferencer(DEMO, weights, device="cpu")
    detector = ROOT / "configs/faster_rcnn/faster-rcnn_demo.py"
    with pytest.raises(TypeError, match="model is a FasterRCNN, expected a MaskAutoLabeler"):
        MALInferencer(detector, weights, device="cpu")


def test_config_from_name_alias_file_or_weights(job, photo, tmp_path):
    demo_cfg = Config.fromfile(ROOT / f"configs/mal/{DEMO}.py")
    weights = save_weights(demo_cfg, tmp_path / "demo.pth", meta=dict(cfg=demo_cfg.pretty_text))
    options = dict(weights=weights, device="cpu", show_progress=False)
    models = (DEMO, "MAL_vit-demo", ROOT / f"configs/mal/{DEMO}.py", demo_cfg, None)
    trusted = [model is None for model in models]  # the config in the weights is a program
    inferencers = [
        MALInferencer(model, trust_checkpoint=trust, **options)
        for model, trust in zip(models, trusted)
    ]
    found = [masks(inferencer(photo, [BOX])) for inferencer in inferencers]
    assert all(mask == found[0] for mask in found) and found[0]
    with pytest.raises(ValueError, match=r"config in .*demo\.pth is a program.*trust_checkpoint"):
        MALInferencer(**options)


def test_every_config_of_phase_1_is_in_the_model_index():
    listed = list(MALInferencer._get_models_from_metafile(str(ROOT)))
    names = [entry["Name"] for entry in listed]
    assert sorted(names) == sorted(path.stem for path in (ROOT / "configs/mal").glob("*.py"))
    for entry in listed:
        assert entry["Config"] == f"configs/mal/{entry['Name']}.py"
        assert "Weights" in entry or "Results" not in entry  # no figures without weights
    names += [alias for entry in listed for alias in entry["Alias"]]
    assert len(set(names)) == len(names)
    assert MALInferencer.list_models("mal_mmdet", "mal_swin") == [
        "mal_swin-base_8xb4-10e_coco",
        "mal_swin-base",
    ]


def test_examples_run(photo, tmp_path, monkeypatch):
    """Those of the docstrings, with the files that they name."""
    monkeypatch.chdir(tmp_path)
    save_weights(Config.fromfile(ROOT / f"configs/mal/{DEMO}.py"), "mal.pth")
    Path("images").mkdir()
    for name in ("photo.jpg", "images/0.jpg"):
        Image.fromarray(photo).save(name)
    Image.fromarray(photo[:100, :100]).save("other.jpg")
    box = dict(image_id=1, category_id=1, bbox=[20, 30, 70, 70])
    write_json(
        "boxes.json",
        dict(
            images=[dict(id=1, file_name="0.jpg", width=160, height=120)],
            annotations=[box | dict(id=7), box | dict(id=9)],
            categories=[dict(id=1, name="cat")],
        ),
    )
    found = doctest.testmod(inferencer)
    assert found.attempted >= 9 and not found.failed
