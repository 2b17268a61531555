# SPDX-License-Identifier: Apache-2.0
"""COCO files and images that anybody may have written.

``MAL_MMDET_HYPOTHESIS=long`` generates 10 000 files.
"""

from __future__ import annotations

import json
import os

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from pycocotools import mask as mask_utils

from mal_mmdet.labeling import complete_annotation, open_coco, read_coco, report_path
from tests.conftest import tiny_config
from tests.hostile import HEIGHT, NAMES, WIDTH, Labeler

LONG = os.environ.get("MAL_MMDET_HYPOTHESIS") == "long"
EXAMPLES = settings(
    max_examples=10_000 if LONG else 200,
    derandomize=not LONG,
    database=None,
    deadline=None,
    report_multiple_bugs=False,
    phases=[Phase.explicit, Phase.generate, Phase.shrink],
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)

texts = st.text(st.characters(exclude_categories=()), max_size=5)  # lone surrogates too
numbers = st.one_of(
    st.integers(-3, 40),
    st.floats(-50, 100),
    st.floats(),
    st.integers(-(2**70), 2**70),
    st.sampled_from([2**31, 2**63, 10**400, -(10**400), 1e-320, 1e300, -0.0]),
)
scalars = st.one_of(st.none(), st.booleans(), numbers, texts, st.just("x" * 5000))
values = st.recursive(
    scalars,
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(texts, inner, max_size=3)),
    max_leaves=6,
)
odd_names = st.sampled_from(
    [
        *("missing.png", "cut.jpg", "empty.png", "text.png", "pipe.png", "zero.png", "sub", "."),
        *("/etc/passwd", "/dev/zero", "../outside.png", "sub/../a.png"),
        *("s3://bucket/a.png", "http://localhost:1/a.png", "petrel:s3://a.png"),
        *("", "nul\0.png", "n" * 300 + ".png", "ü😀\ud800.png"),
    ]
)


def rarely(usual: st.SearchStrategy, odd: st.SearchStrategy = values) -> st.SearchStrategy:
    """One of fifty is odd."""
    return st.integers(0, 49).flatmap(lambda i: odd if i == 49 else usual)


def mostly(usual: st.SearchStrategy, odd: st.SearchStrategy = values) -> st.SearchStrategy:
    """One of twelve is odd."""
    return st.integers(0, 11).flatmap(lambda i: odd if i == 11 else usual)


def entries(usual: dict, optional: dict) -> st.SearchStrategy:
    """Objects that mostly have the usual members, and some that nobody has asked for."""
    whole = st.fixed_dictionaries(usual, optional=optional)
    cut = st.fixed_dictionaries({}, optional=usual | optional | dict(extra=values))
    return rarely(whole, st.one_of(cut, values))


POOL = (1, 2, "1", "ü", 2**64 - 1, -1, -(2**63))  # ids
ids = st.sampled_from(POOL)
sides = st.floats(0.01, 30)
boxes = st.tuples(st.floats(-10, 25), st.floats(-10, 17), sides, sides).map(list)
odd_boxes = st.one_of(st.lists(numbers, min_size=4, max_size=4), values)
rle_counts = st.one_of(
    st.lists(numbers, max_size=4),
    st.text(st.characters(min_codepoint=40, max_codepoint=120), max_size=30),
    st.sampled_from([[WIDTH * HEIGHT], [0, WIDTH * HEIGHT], "o" * 20, "_1l9"]),
)
masks = st.one_of(
    st.lists(st.lists(numbers, max_size=8), max_size=3),
    st.fixed_dictionaries(
        dict(counts=rle_counts, size=mostly(st.just([HEIGHT, WIDTH]), values)), optional={}
    ),
    values,
)


@st.composite
def files(draw) -> dict:
    """A COCO file whose entries mostly belong together."""
    image_ids = draw(st.lists(ids, min_size=1, max_size=3, unique=True))
    category_ids = draw(st.lists(ids, min_size=1, max_size=2, unique=True))
    # Enough for masks whatever is drawn: Hypothesis' values depend on the modules that are loaded.
    number = draw(st.sampled_from([0, 5, 8, 12]))
    content = dict(
        images=[draw(images(image_id)) for image_id in image_ids],
        annotations=[draw(annotations(i, image_ids, category_ids)) for i in range(number)],
        categories=[draw(categories(category_id)) for category_id in category_ids],
    )
    content |= draw(st.fixed_dictionaries({}, optional=dict(info=values, licenses=values)))
    return draw(rarely(st.just(content), st.dictionaries(st.sampled_from(list(content)), values)))


def images(image_id) -> st.SearchStrategy:
    return entries(
        dict(
            id=rarely(st.just(image_id)),
            file_name=mostly(st.sampled_from(NAMES), odd_names | values),
            width=mostly(st.just(WIDTH), numbers | values),
            height=mostly(st.just(HEIGHT), numbers | values),
        ),
        dict(coco_url=texts, license=values),
    )


def annotations(i, image_ids, category_ids) -> st.SearchStrategy:
    return entries(
        dict(
            id=mostly(st.just(i), ids | values),
            image_id=mostly(st.sampled_from(image_ids), ids | values),
            category_id=mostly(st.sampled_from(category_ids), ids | values),
            bbox=mostly(boxes, odd_boxes),
        ),
        dict(
            iscrowd=mostly(st.sampled_from([0, 0, 0, 1])),
            area=mostly(sides),
            segmentation=masks,
            ignore=values,
            score=values,
            source=values,
        ),
    )


def categories(category_id) -> st.SearchStrategy:
    return entries(dict(id=rarely(st.just(category_id)), name=rarely(texts | st.just("cat"))), {})


options = st.fixed_dictionaries(
    dict(
        only_missing=st.booleans(),
        allow_outside=mostly(st.just(False), st.just(True)),
        mask_format=st.sampled_from(["rle", "rle", "polygon"]),
    )
)


@pytest.fixture(scope="module")
def labeler(demo, tmp_path_factory):
    folder = tmp_path_factory.mktemp("hostile")
    return Labeler(folder, tiny_config(demo, folder, **{"model.thresholds": 0.5}))


@pytest.fixture(scope="module")
def masks_made():
    """Number of masks of each file that was labeled, None for one that was refused."""
    found: list[int | None] = []
    yield found
    refused = found.count(None)
    total = sum(count or 0 for count in found)
    print(f"\n{len(found)} files, {refused} of them refused; {total} masks")
    assert total > len(found) > 2 * refused  # or this has tested little


@EXAMPLES
@given(content=files(), options=options)
def test_any_coco_file_is_labeled_or_refused(labeler, masks_made, content, options):
    masks_made.append(labeler.label(json.dumps(content).encode(), **options))


WHOLE = dict(
    images=[dict(id=1, file_name="a.png", width=WIDTH, height=HEIGHT)],
    annotations=[dict(id=1, image_id=1, category_id=1, bbox=[1, 2, 9, 8])],
    categories=[dict(id=1, name="cat")],
)


def whole(**changes) -> bytes:
    return json.dumps(WHOLE | changes).encode()


@st.composite
def detections(draw) -> list:
    number = draw(st.sampled_from([0, 3, 5]))
    found = [draw(annotations(i, [1, 2], [1])) for i in range(number)]
    scores = [draw(mostly(st.floats(0, 1))) for _ in found]
    return [e | dict(score=s) if isinstance(e, dict) else e for e, s in zip(found, scores)]


@EXAMPLES
@given(found=rarely(detections()))
def test_any_results_file_is_labeled_or_refused(labeler, found):
    images = [dict(WHOLE["images"][0], id=i, file_name=NAMES[i]) for i in (1, 2)]
    labeler.label(whole(images=images), detections=json.dumps(found).encode())


@EXAMPLES
@given(
    content=files().map(lambda content: json.dumps(content).encode()),
    place=st.integers(0, 2000),
    length=st.integers(0, 30),
    replacement=st.binary(max_size=8) | st.sampled_from([b"[", b"]", b",", b"1e999", b"NaN", b'"']),
)
def test_any_damaged_file_is_labeled_or_refused(labeler, content, place, length, replacement):
    place %= len(content)
    labeler.label(content[:place] + replacement + content[place + length :])


@pytest.mark.parametrize(
    "content, words",
    [
        (b"", "is not valid JSON"),
        (b"\0" * 99, "is not valid JSON"),
        (b"\xef\xbb" + whole(), "is not valid JSON"),
        (whole().decode().encode("utf-16"), "is not valid JSON"),
        (whole()[:-20], "is not valid JSON"),
        (b"[" * 1_000_000, "recursion"),
        (b'{"a":' * 1_000_000, "recursion"),
        (b'{"annotations": [' + b"[" * 500 + b"]" * 500 + b"]}", "more than 100 deep"),
        (b'{"images": ' + b"[" * 101 + b"]" * 101 + b"}", "more than 100 deep"),
        (
            whole(info=1).replace(b'"info": 1', b'"info": ' + b"9" * 5000),
            "4300",
        ),
        (whole(images=[dict(WHOLE["images"][0], id=2**64)]), r"images\[0\] .* no 'id'"),
        (whole(images=[dict(WHOLE["images"][0], id=True)]), r"images\[0\] .* no 'id'"),
    ],
)
def test_files_that_are_refused(labeler, content, words):
    labeler.boxes.write_bytes(content)
    with pytest.raises(ValueError, match=words):
        open_coco(labeler.boxes)
    assert labeler.label(content) is None
    with pytest.raises(ValueError):
        read_coco(labeler.boxes)


def reported(labeler, **options) -> list[str]:
    assert labeler.label(**options) == 0
    report = json.loads(report_path(labeler.out).read_text())
    return [entry["problem"] for key in ("images", "failed") for entry in report.get(key, [])]


@pytest.mark.parametrize(
    "change, words",
    [
        (dict(bbox=[1, 2, 10**400, 3]), "NaN or infinity, or a number as good as that"),
        (dict(bbox=[1, 2, 3, 4], image_id=True), "its 'image_id' is True"),
        (dict(id=10**30), "expected a whole number of 64 bits or a text"),
        (dict(iscrowd=1, segmentation="mask"), "expected a mask, polygons or RLE"),
        (dict(iscrowd=1, segmentation=[[1, 2, "3", 4, 5, 6]]), "expected polygons"),
        (dict(iscrowd=1, segmentation=[[0, 0, 1e9, 0, 0, 1e9]]), "expected polygons"),
        (dict(iscrowd=1, segmentation=dict(counts=[5], size=[HEIGHT, WIDTH])), "is no RLE"),
        (dict(iscrowd=1, segmentation=dict(counts="o", size=[HEIGHT, WIDTH])), "is no RLE"),
        (dict(iscrowd=1, segmentation=dict(counts="11", size=[HEIGHT, WIDTH])), "is no RLE"),
        (dict(iscrowd=1, segmentation=dict(counts=[6], size=[2, 3])), "of the size"),
    ],
)
def test_annotations_that_are_reported(labeler, change, words):
    (problem,) = reported(labeler, content=whole(annotations=[WHOLE["annotations"][0] | change]))
    assert words in problem


def test_a_mask_that_is_kept_has_to_be_one_that_loaders_can_read(labeler):
    ann = WHOLE["annotations"][0] | dict(segmentation=[["x"]])
    (problem,) = reported(labeler, content=whole(annotations=[ann]), only_missing=True)
    assert "expected polygons" in problem


@pytest.mark.parametrize(
    "change, words",
    [
        (dict(width=True), "'width' of its image 2 is True"),
        (dict(width=10**9, height=10**9), "has 1000000000×1000000000 pixels, more than"),
        (dict(file_name="../outside.png"), "has to lie below the folder"),
        (dict(file_name=None), "'file_name' of its image 2 is None"),
    ],
)
def test_an_image_without_boxes_that_no_loader_could_use_is_left_out(labeler, change, words):
    images = [*WHOLE["images"], WHOLE["images"][0] | dict(id=2) | change]
    assert labeler.label(whole(images=images)) == 1
    (entry,) = json.loads(report_path(labeler.out).read_text())["images"]
    assert words in entry["problem"] and entry["image"] == images[1]
    assert read_coco(labeler.out)["images"] == images[:1]


@pytest.mark.parametrize("allowed", [False, True])
@pytest.mark.parametrize("outside", ["../outside.png", "absolute"])
def test_images_outside_their_folder_are_read_only_if_that_is_allowed(labeler, outside, allowed):
    name = str(labeler.images.parent / "outside.png") if outside == "absolute" else outside
    content = whole(images=[WHOLE["images"][0] | dict(file_name=name)])
    if allowed:
        assert labeler.label(content, allow_outside=True) == 1
    else:
        assert all("has to lie below" in text for text in reported(labeler, content=content))


@pytest.mark.parametrize("width, problem", [(178956970, "pixels long, more than"), (30000, None)])
def test_the_box_of_a_crowd_in_a_wide_image(width, problem):
    crowd = dict(bbox=[0.4, 0, width - 1, 1], iscrowd=1)
    found = complete_annotation(crowd, dict(width=width, height=1))
    if problem:
        assert problem in found
        return
    assert not found and mask_utils.toBbox(crowd["segmentation"]).tolist() == [0, 0, width - 1, 1]


def test_a_mask_without_a_pixel_is_no_box():
    rle = dict(size=[4, 6], counts=[24])
    kept = dict(segmentation=rle, iscrowd=0)
    problem = complete_annotation(kept, dict(width=6, height=4))
    assert problem == "its mask has not one pixel, and it has no box"
    assert not complete_annotation(dict(kept, bbox=[1, 1, 2, 2]), dict(width=6, height=4))


def test_a_crowd_gets_an_area_that_loaders_can_read(labeler):
    crowd = WHOLE["annotations"][0] | dict(iscrowd=1, area="large")
    assert labeler.label(whole(annotations=[crowd])) == 0
    assert read_coco(labeler.out)["annotations"][0]["area"] == 72


def test_a_detection_is_no_crowd_that_gets_its_box_as_mask(labeler):
    found = [dict(WHOLE["annotations"][0], score=0.5, iscrowd=crowd) for crowd in (1, 0)]
    assert labeler.label(whole(), detections=json.dumps(found).encode()) == 1
    (entry,) = json.loads(report_path(labeler.out).read_text())["failed"]
    assert entry["index"] == 0 and "it has 'iscrowd'" in entry["problem"]


@pytest.mark.parametrize(
    "mask",
    [
        [[3, 4, 13, 4, 13, 9, 3, 9], [1, 2]],
        dict(size=[HEIGHT, WIDTH], counts=[52, *[5, 11] * 9, 5, HEIGHT * WIDTH - 52 - 9 * 16 - 5]),
    ],
)
@pytest.mark.parametrize(
    "bbox",
    [
        None,
        [1, 2, float("nan"), 3],
        [1, 2, 1e200, 1e200],
        [1, 2, -5, -5],
        [1000, 1000, 1, 1],
    ],
)
def test_a_mask_that_is_kept_needs_no_box(labeler, mask, bbox):
    ann = WHOLE["annotations"][0] | dict(segmentation=mask, bbox=bbox)
    assert labeler.label(whole(annotations=[ann]), only_missing=True) == 0
    (kept,) = read_coco(labeler.out)["annotations"]
    assert kept == ann | dict(bbox=[3, 4, 10, 5], area=50, iscrowd=0, source="human")
