# SPDX-License-Identifier: Apache-2.0
import runpy
import shutil
import sys
from pathlib import Path

import pytest
from mmdet.registry import DATASETS, METRICS, MODELS
from mmengine.config import Config, ConfigDict
from mmengine.dataset import Compose
from mmengine.hub import get_config
from PIL import Image

from mal_mmdet.apis import check_labels, label_swap, use_labels
from mal_mmdet.apis.label_swap import innermost_dataset, set_num_classes
from mal_mmdet.labeling import (
    mask_to_polygons,
    read_coco,
    segmentation_to_mask,
    write_boxes_only,
    write_json,
)
from tests.conftest import ROOT
from tests.test_detectors import learn
from tests.test_tools import run

MASK_RCNN = "mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py"
RTMDET = "rtmdet/rtmdet-ins_tiny_8xb32-300e_coco.py"
COPY_PASTE = (
    "simple_copy_paste/mask-rcnn_r50_fpn_rpn-2conv_4conv1fc_syncbn-all_32xb2-ssj-scp-90k_coco.py"
)
SOFT_TEACHER = "soft_teacher/soft-teacher_faster-rcnn_r50-caffe_fpn_180k_semi-0.1-coco.py"
# Stock config → number of places in its model that tell its classes apart.
DETECTORS = {
    MASK_RCNN: 2,
    "cascade_rcnn/cascade-mask-rcnn_r50_fpn_1x_coco.py": 4,
    "mask2former/mask2former_r50_8xb2-lsj-50e_coco.py": 2,
    "solov2/solov2_r50_fpn_1x_coco.py": 1,
    "condinst/condinst_r50_fpn_ms-poly-90k_coco_instance.py": 1,
    RTMDET: 1,
    "queryinst/queryinst_r50_fpn_1x_coco.py": 12,
    "point_rend/point-rend_r50-caffe_fpn_ms-1x_coco.py": 3,
    "htc/htc-without-semantic_r50_fpn_1x_coco.py": 6,
    "scnet/scnet_r50_fpn_1x_coco.py": 5,
    "yolact/yolact_r50_1xb8-55e_coco.py": 2,
    "ms_rcnn/ms-rcnn_r50-caffe_fpn_1x_coco.py": 3,
    "seesaw_loss/mask-rcnn_r50_fpn_seesaw-loss_random-ms-2x_lvis-v1.py": 3,
    # in RepeatDataset, MultiImageMixDataset and ClassBalancedDataset
    "mask_rcnn/mask-rcnn_r18_fpn_8xb8-amp-lsj-200e_coco.py": 2,
    COPY_PASTE: 2,
    "lvis/mask-rcnn_r50_fpn_sample1e-3_ms-1x_lvis-v1.py": 2,
    "dsdl/coco_instance.py": 2,  # reads another format
}
WITH_SEMANTIC_MAPS = ("scnet/",)
POLYGONS_ALONE = ("condinst/", "rtmdet/")


@pytest.fixture(scope="module")
def polygons(demo, tmp_path_factory) -> Path:
    labels = read_coco(demo / "instances_train.json")
    for ann in labels["annotations"]:
        rle = ann["segmentation"]
        ann["segmentation"] = mask_to_polygons(segmentation_to_mask(rle, *rle["size"]))
    path = tmp_path_factory.mktemp("polygons") / "labels.json"
    write_json(path, labels)
    return path


@pytest.fixture
def edited(demo, tmp_path):
    """Writes an edited copy of the demo's labels."""

    def write(edit, source=demo / "instances_train.json", name="edited.json"):
        coco = read_coco(source)
        edit(coco)
        write_json(tmp_path / name, coco)
        return tmp_path / name

    return write


def stock(config):
    return get_config(f"mmdet::{config}")


def swapped(demo, config=MASK_RCNN, labels=None, **options):
    cfg = config if isinstance(config, Config) else stock(config)
    use_labels(
        cfg,
        labels or demo / "instances_train.json",
        **{"img_dir": demo / "train", "val_img_dir": demo / "val", **options},
    )
    return cfg


def class_counts(node, inside=""):
    if isinstance(node, dict):
        for key, value in node.items():
            if key in ("num_classes", "num_things_classes") and inside != "semantic_head":
                yield value
            yield from class_counts(value, key)
    elif isinstance(node, (list, tuple)):
        for value in node:
            yield from class_counts(value, inside)


def usable(dataset):
    """Number of objects that are left once annotations are read, before any crop."""
    steps = dataset.pipeline.transforms
    (end,) = (i for i, step in enumerate(steps) if type(step).__name__ == "LoadAnnotations")
    read = Compose(steps[: end + 1])
    samples = [read(dataset.get_data_info(i)) for i in range(len(dataset))]
    return sum(int((~sample["gt_ignore_flags"]).sum()) for sample in samples)


@pytest.mark.parametrize("config", DETECTORS)
def test_stock_configs_learn_the_files_objects_and_classes(demo, polygons, config, tmp_path):
    labels = polygons if config.startswith(POLYGONS_ALONE) else demo / "instances_train.json"
    cfg = stock(config)
    if config.startswith(WITH_SEMANTIC_MAPS):
        innermost_dataset(cfg.train_dataloader.dataset).data_prefix.seg = str(tmp_path)
    swapped(demo, cfg, labels, val_labels=demo / "instances_val.json")
    coco = read_coco(labels)
    classes = tuple(c["name"] for c in coco["categories"])
    assert list(class_counts(cfg.model.to_dict())) == [len(classes)] * DETECTORS[config]

    train = DATASETS.build(innermost_dataset(cfg.train_dataloader.dataset))
    assert train.metainfo["classes"] == classes and len(train.metainfo["palette"]) == len(classes)
    assert len(train) == len({ann["image_id"] for ann in coco["annotations"]})
    assert Path(train.get_data_info(0)["img_path"]).exists()
    if not config.startswith(WITH_SEMANTIC_MAPS):
        assert usable(train) == len(coco["annotations"]) > 0
    for stage in ("val", "test"):
        dataset = DATASETS.build(cfg[f"{stage}_dataloader"].dataset)
        assert dataset.metainfo["classes"] == classes and len(dataset) == 4
        metric = METRICS.build(cfg[f"{stage}_evaluator"])
        assert metric._coco_api.get_cat_ids(cat_names=classes) == train.cat_ids
        assert "segm" in metric.metrics
    Config(cfg.to_dict()).dump(tmp_path / "dumped.py")
    again = Config.fromfile(tmp_path / "dumped.py").train_dataloader.dataset
    assert innermost_dataset(again).metainfo["classes"] == classes


def test_heads_are_built_with_the_files_classes(demo, polygons):
    def build(config, labels=None):
        cfg = swapped(demo, config, labels)
        cfg.model.backbone.init_cfg = None
        return MODELS.build(cfg.model)

    model = build(MASK_RCNN)
    assert model.roi_head.bbox_head.fc_cls.out_features == 8
    assert model.roi_head.mask_head.conv_logits.out_channels == 7
    assert model.rpn_head.num_classes == 1
    model = build("mask2former/mask2former_r50_8xb2-lsj-50e_coco.py")
    assert model.panoptic_head.cls_embed.out_features == 8
    assert model.panoptic_head.class_weight == [1.0] * 7 + [0.1]
    assert model.panoptic_head.num_stuff_classes == 0
    assert build(RTMDET, polygons).bbox_head.rtm_cls[0].out_channels == 7


def test_the_other_parts_of_a_concatenation_are_left_out(demo):
    cfg = stock(MASK_RCNN)
    leaf = cfg.train_dataloader.dataset
    concat = dict(type="ConcatDataset", datasets=[leaf, leaf])
    cfg.train_dataloader.dataset = ConfigDict(type="RepeatDataset", times=3, dataset=concat)
    swapped(demo, cfg)
    assert len(DATASETS.build(cfg.train_dataloader.dataset)) == 3 * 8


def test_the_part_of_a_concatenation_that_reads_instances_is_replaced(demo):
    cfg = stock(MASK_RCNN)
    leaf = cfg.train_dataloader.dataset
    voc = dict(type="VOCDataset", data_root="voc/", ann_file="train.txt", pipeline=[])
    text = dict(type="ODVGDataset", data_root="odvg/", ann_file="train.json", pipeline=[])
    inner = dict(type="RepeatDataset", times=2, dataset=leaf)
    cfg.train_dataloader.dataset = ConfigDict(type="ConcatDataset", datasets=[text, voc, inner])
    swapped(demo, cfg)
    assert len(DATASETS.build(cfg.train_dataloader.dataset)) == 2 * 8
    cfg.train_dataloader.dataset = ConfigDict(type="ConcatDataset", datasets=[text, text])
    with pytest.raises(ValueError, match="data set is a ODVGDataset; a label file takes"):
        swapped(demo, cfg)


def test_data_root_keeps_the_configs_folders(demo, tmp_path):
    (tmp_path / "train2017").symlink_to(demo / "train")
    (tmp_path / "val2017").symlink_to(demo / "val")
    files = dict(val_labels=demo / "instances_val.json", data_root=tmp_path)
    cfg = swapped(demo, img_dir=None, val_img_dir=None, **files)
    for loader, size in ((cfg.train_dataloader, 8), (cfg.val_dataloader, 4)):
        dataset = DATASETS.build(loader.dataset)
        assert len(dataset) == size and Path(dataset.get_data_info(0)["img_path"]).exists()


def named(*names):
    """Renames the first categories of a file and adds those that are missing."""

    def edit(coco):
        ids = [category["id"] for category in coco["categories"]]
        ids += range(1000, 1000 + len(names) - len(ids))
        coco["categories"] = [dict(id=i, name=name) for i, name in zip(ids, names, strict=True)]

    return edit


def coco_classes():
    return DATASETS.get("CocoDataset").METAINFO["classes"]


def test_validation_stays_if_classes_are_the_same(demo, edited, tmp_path, capsys):
    labels = edited(named(*coco_classes()))
    before = stock(MASK_RCNN)
    cfg = swapped(demo, labels=labels, data_root=tmp_path / "moved")
    assert cfg.val_dataloader is cfg.val_evaluator is cfg.val_cfg is None
    assert "moved/annotations/instances_val2017.json does not exist" in capsys.readouterr().out
    annotations = tmp_path / "moved/annotations/instances_val2017.json"
    annotations.parent.mkdir(parents=True)
    annotations.write_text("{}")
    cfg = swapped(demo, labels=labels, data_root=tmp_path / "moved")
    assert capsys.readouterr().out == ""
    assert cfg.val_dataloader.dataset.data_root == str(tmp_path / "moved")
    assert cfg.val_evaluator.ann_file == cfg.test_evaluator.ann_file == str(annotations)
    assert cfg.model == before.model
    assert "metainfo" not in cfg.train_dataloader.dataset


def test_validation_on_other_classes_is_left_out(demo, capsys):
    cfg = swapped(demo)
    assert cfg.val_dataloader is cfg.val_evaluator is cfg.val_cfg is None
    assert cfg.test_dataloader == stock(MASK_RCNN).test_dataloader
    said = capsys.readouterr().out
    assert "without validation" in said and "other classes" in said and "--val-labels" in said


def lvis(coco):
    """Turns the demo's labels to such as LVIS has."""
    named(*DATASETS.get("LVISV1Dataset").METAINFO["classes"])(coco)
    for image in coco["images"]:
        name = image.pop("file_name")
        image["coco_url"] = f"http://images.cocodataset.org/train2017/{name}"


def test_a_data_set_with_its_own_classes_keeps_its_type(demo, edited, tmp_path):
    config = "lvis/mask-rcnn_r50_fpn_sample1e-3_ms-1x_lvis-v1.py"
    (tmp_path / "train2017").symlink_to(demo / "train")
    cfg = swapped(demo, config, edited(lvis), img_dir=tmp_path)
    dataset = innermost_dataset(cfg.train_dataloader.dataset)
    assert dataset.type == "LVISV1Dataset" and "metainfo" not in dataset
    dataset = innermost_dataset(swapped(demo, config).train_dataloader.dataset)
    assert dataset.type == "CocoDataset"


def test_rle_that_would_be_ignored(demo, polygons, edited):
    with pytest.raises(ValueError, match=r"RLE .*--mask-format polygon.*--cfg-options (.*)") as e:
        swapped(demo, RTMDET)
    cfg = stock(RTMDET)
    options = str(e.value).split("--cfg-options ")[1].split()
    assert len(options) == 2  # the second pipeline takes over in mid-training
    cfg.merge_from_dict({option.split("=")[0]: True for option in options})
    swapped(demo, cfg)
    assert usable(DATASETS.build(cfg.train_dataloader.dataset)) == len(
        read_coco(polygons)["annotations"]
    )

    rle = read_coco(demo / "instances_train.json")["annotations"][0]["segmentation"]
    crowd = dict(iscrowd=1, segmentation=rle)
    swapped(demo, RTMDET, edited(lambda coco: coco["annotations"][0].update(crowd), polygons))


def test_labels_and_images_that_do_not_belong_together(demo, edited):
    with pytest.raises(ValueError, match=r"looked for .*/nowhere/00001.jpg.*--img-dir"):
        swapped(demo, img_dir=demo / "nowhere")
    files = dict(val_labels=demo / "instances_val.json", val_img_dir=demo / "nowhere")
    with pytest.raises(ValueError, match=r"first 4 .*/nowhere/.*--val-img-dir"):
        swapped(demo, **files)
    with pytest.raises(ValueError, match=r"looked for data/coco/train2017/00001.jpg.*'train2017/'"):
        swapped(demo, img_dir=None)

    def by_address(coco):
        for image in coco["images"]:
            image["coco_url"] = image.pop("file_name")

    with pytest.raises(ValueError, match="no 'file_name', which CocoDataset needs"):
        swapped(demo, labels=edited(by_address))
    with pytest.raises(ValueError, match="'width' of its image 1 is None"):
        swapped(demo, labels=edited(lambda coco: coco["images"][0].pop("width")))


def test_validation_labels_of_other_categories(demo, edited):
    source = demo / "instances_val.json"
    files = dict(val_labels=edited(lambda coco: coco["categories"].reverse(), source))
    with pytest.raises(ValueError, match=r"another order: categories\[0\] is 'horseshoe' instead"):
        swapped(demo, **files)
    files = dict(val_labels=edited(lambda coco: coco["categories"].pop(), source))
    with pytest.raises(ValueError, match="6 instead of 7"):
        swapped(demo, **files)
    cfg = stock(MASK_RCNN)
    cfg.val_dataloader = cfg.val_cfg = cfg.val_evaluator = None
    with pytest.raises(ValueError, match=r"no val_dataloader.*leave out --val-labels"):
        swapped(demo, cfg, val_labels=source)


def unmasked(coco):
    for ann in coco["annotations"]:
        del ann["segmentation"]


def test_label_files_without_anything_to_learn(demo, edited, tmp_path):
    with pytest.raises(ValueError, match=r"no annotation of .* has a mask; expected labels"):
        swapped(demo, labels=edited(unmasked))
    # a detector of boxes needs no masks
    cfg = swapped(demo, "faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py", edited(unmasked))
    assert cfg.model.roi_head.bbox_head.num_classes == 7
    with pytest.raises(ValueError, match="has a mask"):
        swapped(demo, val_labels=edited(unmasked, demo / "instances_val.json"))
    for key in ("images", "annotations", "categories"):
        with pytest.raises(ValueError, match=f"has no {key}"):
            swapped(demo, labels=edited(lambda coco, key=key: coco[key].clear()))
    with pytest.raises(FileNotFoundError, match=r"nowhere\.json does not exist"):
        swapped(demo, labels=tmp_path / "nowhere.json")


@pytest.mark.parametrize(
    "config, message",
    [
        ("mask2former/mask2former_r50_8xb2-lsj-50e_coco-panoptic.py", "instances alone: take"),
        ("mask2former_vis/mask2former_r50_8xb2-8e_youtubevis2019.py", "a YouTubeVISDataset; a lab"),
        (SOFT_TEACHER, "sampler is a GroupMultiSourceSampler, which mixes several"),
    ],
)
def test_configs_that_need_more_than_labels(demo, config, message):
    with pytest.raises(ValueError, match=message):
        swapped(demo, config)


def test_configs_of_phase_1(demo):
    cfg = Config.fromfile(ROOT / "configs/mal/mal_vit-demo_1xb16_demo.py")
    with pytest.raises(ValueError, match="is a CocoBoxDataset"):
        swapped(demo, cfg)
    with pytest.raises(ValueError, match="no train_dataloader"):
        swapped(demo, Config(dict(model=dict())))


def test_configs_that_train_with_the_quality_of_masks(demo, edited):
    path = ROOT / "configs/mask_rcnn/mask-rcnn_r50_fpn_1x_coco-mal-min-quality.py"

    def rated(coco):
        coco["annotations"][-1]["mask_quality"] = 0.4

    cfg = swapped(demo, Config.fromfile(path), edited(rated))
    assert cfg.model.roi_head.mask_head.num_classes == 7
    dataset = DATASETS.build(cfg.train_dataloader.dataset)
    instances = [i for n in range(len(dataset)) for i in dataset.get_data_info(n)["instances"]]
    assert [i["mask_quality"] for i in instances if "mask_quality" in i] == [0.4]
    with pytest.raises(ValueError, match=r"looked for .*/nowhere/00001.jpg.*--img-dir"):
        swapped(demo, Config.fromfile(path), edited(rated), img_dir=demo / "nowhere")
    cfg = swapped(demo, Config.fromfile(path))
    with pytest.raises(
        ValueError, match=r"instances_train.json has mask_quality.*write the labels"
    ):
        DATASETS.build(cfg.train_dataloader.dataset)


def with_labels(demo, config, labels):
    """A config that names its label file and classes itself, as those in configs/ do."""
    cfg = stock(config)
    dataset = innermost_dataset(cfg.train_dataloader.dataset)
    classes = tuple(c["name"] for c in read_coco(demo / "instances_train.json")["categories"])
    dataset.update(
        data_root=str(demo),
        ann_file=str(labels),
        data_prefix=dict(img="train/"),
        metainfo=dict(classes=classes),
    )
    set_num_classes(cfg.model, len(classes))
    return cfg


def test_configs_that_name_their_labels_are_checked(demo, polygons, edited, tmp_path):
    human = "instances_train.json"
    for config, labels in ((MASK_RCNN, human), (COPY_PASTE, human), (RTMDET, polygons)):
        check_labels(with_labels(demo, config, labels))
    cfg = Config.fromfile(ROOT / "configs/mal/mal_vit-base-mae_8xb4-10e_objects365v2.py")
    boxes = dict(data_root=str(demo), ann_file="boxes_train.json", data_prefix=dict(img="train/"))
    innermost_dataset(cfg.train_dataloader.dataset).update(boxes)
    check_labels(cfg)  # phase 1 needs no classes
    check_labels(Config(dict(model=dict(type="A"))))
    check_labels(Config(dict(train_dataloader=dict(batch_size=2))))

    with pytest.raises(ValueError, match=r"is an RLE mask.*poly2mask=True"):
        check_labels(with_labels(demo, RTMDET, human))
    with pytest.raises(ValueError, match=r"no annotation of .* has a mask"):
        check_labels(with_labels(demo, MASK_RCNN, "boxes_train.json"))
    with pytest.raises(FileNotFoundError, match=r"nowhere\.json does not exist"):
        check_labels(with_labels(demo, MASK_RCNN, "nowhere.json"))
    cfg = with_labels(demo, COPY_PASTE, human)
    innermost_dataset(cfg.train_dataloader.dataset).data_prefix.img = "val2017/"
    with pytest.raises(
        ValueError, match=r"val2017/00001.jpg. Set data_root and .*--img-dir FOLDER"
    ):
        check_labels(cfg)
    renamed = edited(lambda coco: coco["categories"][2].update(name="moon"))
    cfg = with_labels(demo, MASK_RCNN, renamed)
    with pytest.raises(
        ValueError, match=r"1 of the config's 7 classes .*'crescent' .*--train-labels"
    ):
        check_labels(cfg)
    names = [category["name"] for category in read_coco(renamed)["categories"]]
    cfg.train_dataloader.dataset.metainfo = dict(classes=names[:5])
    with pytest.raises(ValueError, match=r"2 categories of .* are no classes of .*'arrow'"):
        check_labels(cfg)
    cfg.train_dataloader.dataset.metainfo = dict(classes=names[::-1])
    with pytest.raises(ValueError, match=r"another order: categories\[0\] is 'star' instead"):
        check_labels(cfg)
    cfg.train_dataloader.dataset.metainfo = dict(classes=names)
    check_labels(cfg)
    cfg.model.roi_head.mask_head.num_classes = 80
    with pytest.raises(ValueError, match=r"roi_head.mask_head.num_classes is 80, but .* 7 classes"):
        check_labels(cfg)


def test_semantic_maps_that_are_not_there(demo, tmp_path):
    cfg = with_labels(demo, "htc/htc_r50_fpn_1x_coco.py", "instances_train.json")
    with pytest.raises(ValueError, match=r"semantic maps, .* no folder .*stuffthingmaps/"):
        check_labels(cfg)


@pytest.mark.parametrize("config", ["htc/htc_r50_fpn_1x_coco.py", "scnet/scnet_r50_fpn_1x_coco.py"])
def test_detectors_with_a_semantic_branch_learn_without_it(demo, tmp_path, capsys, config):
    cfg = swapped(demo, config, data_root=tmp_path)
    assert "training without semantic branch: there is no folder" in capsys.readouterr().out
    learn(cfg)
    (tmp_path / "stuffthingmaps/train2017").mkdir(parents=True)
    assert swapped(demo, config, data_root=tmp_path).model.roi_head.semantic_head


def test_images_of_another_size_or_some_that_are_missing(demo, tmp_path):
    (tmp_path / "small").mkdir()
    for path in (demo / "train").iterdir():
        Image.open(path).resize((160, 160)).save(tmp_path / "small" / path.name)
    with pytest.raises(ValueError, match=r"160×160 pixels, but 320×320 in .*do not belong togeth"):
        swapped(demo, img_dir=tmp_path / "small")
    (tmp_path / "some").mkdir()
    first = read_coco(demo / "instances_train.json")["images"][0]["file_name"]
    shutil.copy(demo / "train" / first, tmp_path / "some")
    with pytest.raises(ValueError, match=r"7 of the first 8 images .* were not found"):
        swapped(demo, img_dir=tmp_path / "some")


@pytest.mark.parametrize(
    "change, words",
    [
        (dict(image_id=99), "annotations.1. has the image_id 99"),
        (dict(category_id=[]), r"annotations.1. has the category_id \[\]"),
        (dict(bbox=[1, 2, 3]), "annotations.1. has the bbox"),
        (dict(area=None), "annotations.1. has the area None.*tools/generate_labels.py writes"),
        (dict(segmentation=[]), "annotations.1. of .* has no mask.*--only-missing"),
        (
            dict(segmentation=dict(size=[9, 9], counts="PP")),
            r"annotations.1. .*\[320, 320\] of its",
        ),
        (
            dict(segmentation=dict(size=[320, 320], counts="zzzz")),
            "mask of annotations.1. cannot be",
        ),
        (dict(segmentation=[1, 2, 3]), r"annotations.1. .*expected polygons \[x, y"),
    ],
)
def test_an_annotation_at_which_a_training_would_fail(demo, edited, change, words):
    labels = edited(lambda coco: coco["annotations"][1].update(change))
    with pytest.raises(ValueError, match=words):
        swapped(demo, labels=labels)


@pytest.mark.parametrize(
    "change",
    [
        dict(area=0),
        dict(bbox=[5, 5, 0.5, 9], area=4),
        dict(bbox=[400, 5, 9, 9], area=81),
        dict(segmentation=[[1, 2, 3, 4], [1, 1, 20, 1, 20, 20, 5]]),
        dict(segmentation=dict(size=[320, 320], counts=None)),
        dict(segmentation=dict(size=[9, 9], counts="PP"), area=0),
    ],
)
def test_what_mmdet_leaves_out_is_counted(demo, edited, monkeypatch, change):
    said = []
    monkeypatch.setattr(label_swap, "print_log", lambda text, **kwargs: said.append(text))
    cfg = swapped(demo, labels=edited(lambda coco: coco["annotations"][1].update(change)))
    assert len(said) == 1 and "leaves out 1 annotations of" in said[0]
    assert "edited.json, annotations[1] for one" in said[0]
    train, whole = (DATASETS.build(c.train_dataloader.dataset) for c in (cfg, swapped(demo)))
    kept, every = (
        sum(len(data[i]["data_samples"].gt_instances) for i in range(len(data)))
        for data in (train, whole)
    )
    assert every - kept == 1

    def all_of_them(coco):
        for ann in coco["annotations"]:
            ann.update(change)

    with pytest.raises(ValueError, match=r"leaves out .*Nothing can be learned from the file"):
        swapped(demo, labels=edited(all_of_them))


def test_a_file_of_crowds(demo, edited):
    def crowds(coco):
        for ann in coco["annotations"]:
            ann["iscrowd"] = 1

    with pytest.raises(ValueError, match=r"all annotations of .* are crowds"):
        swapped(demo, labels=edited(crowds))


def test_detectors_of_boxes_need_no_masks(demo, tmp_path):
    files = dict(labels=demo / "boxes_train.json", val_labels=tmp_path / "boxes_val.json")
    write_boxes_only(demo / "instances_val.json", files["val_labels"])
    cfg = swapped(demo, "faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py", **files)
    assert cfg.val_evaluator.ann_file == str(files["val_labels"])


def test_detectors_of_voc(demo):
    """Its options for VOC's folders and files mean nothing to the data set that reads COCO."""
    cfg = swapped(
        demo, "pascal_voc/faster-rcnn_r50_fpn_1x_voc0712.py", val_labels=demo / "instances_val.json"
    )
    train = DATASETS.build(cfg.train_dataloader.dataset)
    assert len(train) == 3 * 8 and len(train[0]["data_samples"].gt_instances)
    assert cfg.model.roi_head.bbox_head.num_classes == 7
    assert METRICS.build(cfg.test_evaluator).metrics == ["bbox"]


@pytest.mark.parametrize(
    "config, folder",
    [
        ("dsdl/coco_instance.py", "original"),
        ("wider_face/retinanet_r50_fpn_1x_widerface.py", "WIDER_train"),
    ],
)
def test_data_sets_of_other_formats_keep_what_is_not_about_the_format(
    demo, tmp_path, config, folder
):
    shutil.copytree(demo / "train", tmp_path / folder)
    cfg = stock(config)
    cfg.train_dataloader.dataset.indices = 3
    use_labels(cfg, demo / "instances_train.json", data_root=tmp_path)
    train = DATASETS.build(cfg.train_dataloader.dataset)
    assert len(train) == 3 and train.data_prefix == dict(img=str(tmp_path / folder))


def test_a_stock_metric_of_coco_keeps_its_options(demo):
    cfg = stock("dsdl/coco_instance.py")
    cfg.val_evaluator.classwise = True
    swapped(demo, cfg, val_labels=demo / "instances_val.json")
    assert cfg.val_evaluator.classwise and METRICS.build(cfg.val_evaluator).metrics[1] == "segm"


def test_images_of_lvis_are_looked_for_by_their_address(demo, edited, tmp_path):
    config = "lvis/mask-rcnn_r50_fpn_sample1e-3_ms-1x_lvis-v1.py"
    labels = edited(lvis)
    (tmp_path / "root").mkdir()
    (tmp_path / "root/train2017").symlink_to(demo / "train")
    swapped(demo, config, labels, img_dir=tmp_path / "root")
    with pytest.raises(ValueError, match=r"looked for .*/train/train2017/00001.jpg"):
        swapped(demo, config, labels)


def test_labels_that_cannot_be_looked_at_or_are_not_there_yet(demo, edited, tmp_path):
    human = "instances_train.json"
    cfg = with_labels(demo, MASK_RCNN, human)
    dataset = cfg.train_dataloader.dataset
    (tmp_path / "classes.txt").write_text("\n".join(dataset.metainfo.classes))
    dataset.metainfo.classes = str(tmp_path / "classes.txt")
    check_labels(cfg)

    unlabeled = edited(lambda coco: coco["annotations"].clear(), name="unlabeled.json")
    boxes = ConfigDict(
        dataset, ann_file="boxes_train.json", pipeline=[dict(type="LoadAnnotations")]
    )
    parts = [dataset, ConfigDict(dataset, ann_file=str(unlabeled)), boxes]
    cfg.train_dataloader.dataset = dict(type="ConcatDataset", datasets=parts)
    check_labels(cfg)
    boxes.pipeline[0].with_mask = True
    with pytest.raises(ValueError, match=r"no annotation of .*boxes_train.json has a mask"):
        cfg.train_dataloader.dataset = dict(type="ConcatDataset", datasets=[dataset, boxes])
        check_labels(cfg)

    for remote in (dict(data_root="s3://demo/"), dict(backend_args=dict(backend="petrel"))):
        cfg = with_labels(demo, MASK_RCNN, "nowhere.json")
        cfg.train_dataloader.dataset.update(remote)
        check_labels(cfg)


def test_train_tool_checks_labels_before_it_trains(demo, tmp_path):
    work_dir = tmp_path / "out"
    config = "configs/mask_rcnn/mask-rcnn_r50_fpn_1x_coco-mal.py"
    options = [f"train_dataloader.dataset.data_root={demo}/"]
    options += ["train_dataloader.dataset.ann_file=instances_train.json"]
    done = run("tools/train.py", config, "--work-dir", work_dir, "--cfg-options", *options, code=1)
    assert "80 of the config's 80 classes are no categories of" in done.stderr
    assert not work_dir.exists()


def test_weights_of_single_classes_cannot_be_guessed():
    def head(*weights):
        loss = dict(type="CrossEntropyLoss", class_weight=list(weights))
        return ConfigDict(bbox_head=dict(num_classes=3, loss_cls=loss))

    model = head(1.0, 1.0, 1.0, 0.5)
    set_num_classes(model, 2)
    assert model.bbox_head.loss_cls.class_weight == [1.0, 1.0, 0.5]
    with pytest.raises(ValueError, match=r"model.bbox_head.loss_cls.class_weight .* make them equ"):
        set_num_classes(head(1.0, 2.0, 1.0, 0.5), 2)
    model = head(1.0, 2.0, 1.0, 0.5)
    set_num_classes(model, 3)
    assert model.bbox_head.loss_cls.class_weight == [1.0, 2.0, 1.0, 0.5]


def test_train_tool_takes_a_stock_config_and_labels(demo, polygons, tmp_path):
    pipeline = "train_dataloader.dataset.pipeline"
    files = ["--train-labels", polygons, "--val-labels", demo / "instances_val.json"]
    files += ["--img-dir", demo / "train", "--val-img-dir", demo / "val", "--work-dir", tmp_path]
    options = ["model.backbone.init_cfg=None", "custom_hooks=[]", "train_cfg.max_epochs=1"]
    options += ["train_dataloader.batch_size=4", "default_hooks.checkpoint.interval=1"]
    options += ["train_cfg.dynamic_intervals=None", "train_cfg.val_interval=1"]
    for loader in ("train", "val"):
        options += [f"{loader}_dataloader.num_workers=0"]
        options += [f"{loader}_dataloader.persistent_workers=False"]
    options += [f"{pipeline}.{i}=(96,96)" for i in ("2.img_scale", "3.scale", "8.img_scale")]
    options += [f"{pipeline}.4.crop_size=(96,96)", f"{pipeline}.7.size=(96,96)"]
    options += ["val_dataloader.dataset.pipeline.1.scale=(96,96)"]
    options += ["val_dataloader.dataset.pipeline.2.size=(96,96)"]
    done = run("tools/train.py", f"mmdet::{RTMDET}", *files, "--cfg-options", *options)
    assert (tmp_path / "epoch_1.pth").exists()
    assert "Evaluating bbox" in done.stdout + done.stderr


def test_options_of_labels_need_labels(monkeypatch, capsys):
    parse_args = runpy.run_path(str(ROOT / "tools/train.py"))["parse_args"]

    def refusal(*options):
        monkeypatch.setattr(sys, "argv", ["train.py", "config.py", *options])
        with pytest.raises(SystemExit):
            parse_args()
        return capsys.readouterr().err

    assert "need --train-labels" in refusal("--data-root", "data")
    assert "needs --val-labels" in refusal("--train-labels", "a.json", "--val-img-dir", "data")
