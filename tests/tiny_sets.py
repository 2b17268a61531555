# SPDX-License-Identifier: Apache-2.0
"""Tiny data sets in the formats and folders that the phase 1 configs expect.

Each function writes one below ``root`` and returns its boxes to train on, as written here by
hand: (file, label, [x0, y0, x1, y1]). Every file also holds something to be left out.
"""

import json
import pickle
from pathlib import Path

import numpy as np
from PIL import Image

WIDTH, HEIGHT = 120, 90
FIRST, SECOND, THIRD = [5, 10, 60, 50], [40, 20, 70, 60], [0, 0, 80, 80]  # x, y, width, height
CROWD = [10, 10, 100, 70]
LVIS_CLASSES = 1203


def xyxy(bbox):
    x, y, w, h = bbox
    return [x, y, x + w, y + h]


def write_image(path, size=(WIDTH, HEIGHT)):
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(len(str(path.name)))
    Image.fromarray(rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)).save(path)


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content))


def polygon(bbox):
    """A triangle in the box, as a person could have drawn it."""
    x0, y0, x1, y1 = xyxy(bbox)
    return [[x0, y0, x1, y0, x0, y1]]


def annotation(ann_id, image_id, category_id, bbox, **more):
    entry = dict(id=ann_id, image_id=image_id, category_id=category_id, bbox=bbox, iscrowd=0)
    return entry | dict(area=bbox[2] * bbox[3] / 2) | more


def image(image_id, **more):
    return dict(id=image_id, width=WIDTH, height=HEIGHT) | more


def make_lvis(root: Path):
    for split, number in (("train", 391895), ("val", 522418)):
        names = [f"{split}2017/{number + i:012d}.jpg" for i in range(2)]
        for name in names:
            write_image(root / name)
        anns = [(1, number, 1203, FIRST), (2, number + 1, 4, SECOND), (3, number + 1, 1203, THIRD)]
        images = [
            image(
                number + i,
                coco_url=f"http://images.cocodataset.org/{name}",
                flickr_url="http://example.com/1.jpg",
                not_exhaustive_category_ids=[7 + i],
                neg_category_ids=[3, 5],
            )
            for i, name in enumerate(names)
        ]
        categories = [
            dict(id=i, name=f"thing_{i}", frequency="r", synset="thing.n.01", synonyms=["thing"])
            for i in range(1, LVIS_CLASSES + 1)
        ]
        content = dict(
            info=dict(version="1.0"),
            licenses=[],
            images=images,
            categories=categories,
            annotations=[annotation(*a, segmentation=polygon(a[3])) for a in anns],
        )
        for ann in content["annotations"]:
            del ann["iscrowd"]  # LVIS has no crowds
        write(root / f"annotations/lvis_v1_{split}.json", content)
    return [
        ("train2017/000000391895.jpg", 1202, [5, 10, 65, 60]),
        ("train2017/000000391896.jpg", 3, [40, 20, 110, 80]),
        ("train2017/000000391896.jpg", 1202, [0, 0, 80, 80]),
    ]


def make_objects365v2(root: Path):
    for split in ("train", "val"):
        for name in ("patch8/a.jpg", "patch17/b.jpg"):
            write_image(root / split / name)
        content = dict(
            images=[
                image(11, file_name="images/v1/patch8/a.jpg"),
                image(12, file_name="images/v2/patch17/b.jpg"),
            ],
            categories=[
                dict(id=1 + i, name=n) for i, n in enumerate(("Person", "Sneakers", "Chair"))
            ],
            annotations=[
                annotation(21, 11, 3, FIRST, isfake=0, isreflected=0),
                annotation(22, 12, 1, SECOND),
                annotation(23, 12, 1, CROWD, iscrowd=1),
            ],
        )
        write(root / f"annotations/zhiyuan_objv2_{split}.json", content)
    return [
        ("train/patch8/a.jpg", 2, [5, 10, 65, 60]),
        ("train/patch17/b.jpg", 0, [40, 20, 110, 80]),
    ]


def make_cityscapes(root: Path):
    for split in ("train", "val"):
        name = "aachen/aachen_000000_00001{}_{}.png"
        images = []
        for i in range(2):  # its converter counts from 0
            write_image(root / "leftImg8bit" / split / name.format(i, "leftImg8bit"))
            segm = name.format(i, "gtFine_instanceIds")
            images.append(image(i, file_name=name.format(i, "leftImg8bit"), segm_file=segm))
        content = dict(
            images=images,
            categories=[
                dict(id=24 + i, name=n)
                for i, n in enumerate(("person", "rider", "car", "truck", "bus"))
            ],
            annotations=[
                annotation(0, 0, 26, FIRST, segmentation=polygon(FIRST)),
                annotation(1, 1, 24, SECOND, segmentation=polygon(SECOND)),
                annotation(2, 1, 26, CROWD, segmentation=polygon(CROWD), iscrowd=1),
            ],
        )
        write(root / f"annotations/instancesonly_filtered_gtFine_{split}.json", content)
    folder = "leftImg8bit/train/aachen/aachen_000000_00001"
    return [
        (f"{folder}0_leftImg8bit.png", 2, [5, 10, 65, 60]),
        (f"{folder}1_leftImg8bit.png", 0, [40, 20, 110, 80]),
    ]


def voc_object(name, bbox, difficult):
    corners = (f"<{k}>{v}</{k}>" for k, v in zip(("xmin", "ymin", "xmax", "ymax"), bbox))
    return (
        f"<object><name>{name}</name><difficult>{difficult}</difficult>"
        f"<bndbox>{''.join(corners)}</bndbox></object>"
    )


def make_voc(root: Path):
    size = f"<size><width>{WIDTH}</width><height>{HEIGHT}</height><depth>3</depth></size>"
    for year, name, objects in (
        ("VOC2007", "000005", [("dog", [6, 11, 66, 61], 0), ("cat", [1, 1, 100, 80], 1)]),
        ("VOC2012", "2008_000008", [("aeroplane", [41, 21, 111, 81], 0)]),
    ):
        write_image(root / year / "JPEGImages" / f"{name}.jpg")
        write(root / year / "ImageSets/Main/trainval.txt", f"{name}\n")
        body = size + "".join(voc_object(*o) for o in objects)
        write(root / year / "Annotations" / f"{name}.xml", f"<annotation>{body}</annotation>")
    return [  # VOC counts pixels from 1, mmdet from 0
        ("VOC2007/JPEGImages/000005.jpg", 11, [5, 10, 65, 60]),
        ("VOC2012/JPEGImages/2008_000008.jpg", 0, [40, 20, 110, 80]),
    ]


def make_openimages(root: Path):
    names = ["000a1b", "000c2d"]
    for name in names:
        write_image(root / f"OpenImages/train/{name}.jpg")
    head = "ImageID,Source,LabelName,Confidence,XMin,XMax,YMin,YMax,IsOccluded,IsTruncated,"
    rows = [
        head + "IsGroupOf,IsDepiction,IsInside",
        "000a1b,xclick,/m/02,1,0.25,0.75,0.2,0.8,0,1,0,0,0",
        "000a1b,xclick,/m/01,1,0.0,1.0,0.0,1.0,0,0,1,0,0",  # a group
        "000c2d,xclick,/m/01,1,0.5,1.0,0.0,0.5,1,0,0,0,0",
    ]
    folder = root / "annotations"
    write(folder / "oidv6-train-annotations-bbox.csv", "\n".join(rows) + "\n")
    write(folder / "class-descriptions-boxable.csv", "/m/01,Tortoise\n/m/02,Container\n")
    tree = dict(LabelName="/m/0", Subcategory=[dict(LabelName="/m/01"), dict(LabelName="/m/02")])
    write(folder / "bbox_labels_600_hierarchy.json", tree)
    metas = [dict(filename=f"{n}.jpg", ori_shape=(HEIGHT, WIDTH, 3)) for n in names]
    (folder / "train-image-metas.pkl").write_bytes(pickle.dumps(metas))
    return [
        ("OpenImages/train/000a1b.jpg", 1, [30, 18, 90, 72]),
        ("OpenImages/train/000c2d.jpg", 0, [60, 0, 120, 45]),
    ]


# End of the config's name → what makes the data set.
TINY_SETS = {
    "lvis-v1": make_lvis,
    "objects365v2": make_objects365v2,
    "cityscapes": make_cityscapes,
    "voc": make_voc,
    "openimages": make_openimages,
}
# Sets whose boxes are labeled from a file that boxes_to_coco makes: folder of its images.
CONVERTED = {"voc": "", "openimages": "OpenImages/train"}


def config_path(name: str) -> Path:
    root = Path(__file__).parents[1]
    return root / f"configs/mal/mal_vit-base-mae_8xb4-10e_{name}.py"


def set_data_root(node, root: Path) -> None:
    """Points every data set in a config to ``root``; all else stays the config's."""
    if isinstance(node, dict):
        if "ann_file" in node:
            node["data_root"] = str(root)
        for value in node.values():
            set_data_root(value, root)
    elif isinstance(node, (list, tuple)):
        for value in node:
            set_data_root(value, root)
