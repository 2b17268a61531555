# SPDX-License-Identifier: Apache-2.0
"""YouTube-VIS files: boxes per frame out to a COCO file, masks per frame back in.

Numbers of frames and boxes follow from their places in the YouTube-VIS file alone, so that the
way back needs nothing but the same file.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pycocotools import mask as mask_utils

from .coco_file import read_lists, strip_masks
from .polygons import mask_problem

VIDEO_KEYS = ("id", "width", "height", "file_names")
TRACK_KEYS = ("id", "video_id", "category_id", "bboxes")
PER_FRAME = ("bboxes", "segmentations", "areas")


def read_vis(path: str | Path) -> dict[str, Any]:
    """Reads a YouTube-VIS annotation file and checks its frame.

    Raises:
        FileNotFoundError: No such file.
        ValueError: Not JSON, or not the structure of a YouTube-VIS file; says what is missing.
    """
    vis = read_lists(path, ("videos", "annotations", "categories"), "YouTube-VIS's format")
    for key, needed in (("videos", VIDEO_KEYS), ("annotations", TRACK_KEYS)):
        for i, entry in enumerate(vis[key]):
            for name in needed:
                if not isinstance(entry, dict) or entry.get(name) is None:
                    raise ValueError(
                        f"{key}[{i}] of {path} has no {name!r}; an entry of {key!r} in "
                        f"YouTube-VIS's format has {', '.join(map(repr, needed))}"
                    )
        _check_types(path, key, vis[key])
        if len({entry["id"] for entry in vis[key]}) != len(vis[key]):
            raise ValueError(f"ids of {key} in {path} are not unique")
    lengths = {video["id"]: len(video["file_names"]) for video in vis["videos"]}
    for track in vis["annotations"]:
        if track["video_id"] not in lengths:
            raise ValueError(
                f"video {track['video_id']!r} of annotation {track['id']!r} in {path} is not in "
                "'videos'"
            )
        found, expected = len(track["bboxes"]), lengths[track["video_id"]]
        if found != expected:
            raise ValueError(
                f"annotation {track['id']!r} in {path} has {found} bboxes, but its video "
                f"{track['video_id']!r} has {expected} frames; expected a box or null for each"
            )
    return vis


def _check_types(path: str | Path, key: str, entries: list[dict]) -> None:
    kinds = dict(id=(int, str), video_id=(int, str), file_names=list, bboxes=list)
    for i, entry in enumerate(entries):
        for name in kinds.keys() & entry.keys():
            if not isinstance(entry[name], kinds[name]):
                raise ValueError(
                    f"{name!r} of {key}[{i}] of {path} is {entry[name]!r:.40}, expected "
                    + ("a list" if kinds[name] is list else "a number or a text")
                )


def split_frames(vis: dict[str, Any]) -> dict[str, Any]:
    """The boxes of all frames as a COCO file, without masks.

    An image is a frame with at least one box, an annotation is a box. The id of an image counts
    all frames of all videos in the file's order, from 1; that of an annotation all frames of
    all tracks.

    Args:
        vis: A file as :func:`read_vis` returns it. Left alone.

    Returns:
        COCO file; ``file_name`` is that of the frame, ``bbox`` is [x, y, width, height] in
        pixels of the frame.
    """
    first, total = {}, 0
    for video in vis["videos"]:
        first[video["id"]] = total + 1
        total += len(video["file_names"])
    annotations = [
        dict(
            id=box_id,
            image_id=first[track["video_id"]] + frame,
            category_id=track["category_id"],
            bbox=track["bboxes"][frame],
            iscrowd=track.get("iscrowd", 0),
        )
        for box_id, track, frame in _boxes(vis)
    ]
    used = {ann["image_id"] for ann in annotations}
    images = [
        dict(
            id=first[video["id"]] + frame,
            file_name=name,
            width=video["width"],
            height=video["height"],
        )
        for video in vis["videos"]
        for frame, name in enumerate(video["file_names"])
        if first[video["id"]] + frame in used
    ]
    return strip_masks(dict(images=images, annotations=annotations, categories=vis["categories"]))


def merge_masks(vis: dict[str, Any], labels: dict[str, Any]) -> tuple[dict[str, Any], int]:
    """Puts the masks of single frames back into the tracks.

    Every track keeps what it has, and gains in each frame ``segmentations`` (compressed RLE) and
    ``areas`` (px²), null where it has no box. A box without a mask to learn from becomes null too,
    since stock loaders refuse one: what was not labeled, or was dropped or marked as crowd for its
    low quality. A crowd that has masks keeps them.

    Args:
        vis: The file that :func:`split_frames` was given. Left alone.
        labels: The label file made from its result.

    Returns:
        The file with masks, and the number of boxes that became null.

    Raises:
        ValueError: The labels belong to another file, or are no labels.
    """
    for i, ann in enumerate(labels["annotations"]):
        if not isinstance(ann, dict) or not isinstance(ann.get("id"), int):
            raise ValueError(
                f"annotations[{i}] of the labels is {ann!r:.60} and has no number as 'id'; "
                "expected the labels of the file that split wrote"
            )
    found = {ann["id"]: ann for ann in labels["annotations"]}
    boxes = {box_id: track["bboxes"][frame] for box_id, track, frame in _boxes(vis)}
    videos = {video["id"]: video for video in vis["videos"]}
    sizes = {box_id: videos[track["video_id"]] for box_id, track, _ in _boxes(vis)}
    for box_id, ann in found.items():
        if box_id not in boxes or boxes[box_id] != ann.get("bbox"):
            raise ValueError(
                f"annotation {box_id!r} of the labels has the bbox {ann.get('bbox')}, but the "
                f"YouTube-VIS file has {boxes.get(box_id)} in its place: the labels were made "
                "from another file; split this one and label the result"
            )
        if not isinstance(ann.get("segmentation"), dict):
            raise ValueError(
                f"annotation {box_id!r} of the labels has no mask as RLE; expected the file "
                "that tools/generate_labels.py writes with --mask-format rle"
            )
        if problem := mask_problem(ann["segmentation"], sizes[box_id]):
            raise ValueError(f"annotation {box_id!r} of the labels: {problem}")
    tracks = {
        track["id"]: {**track, **{key: [None] * len(track["bboxes"]) for key in PER_FRAME}}
        for track in vis["annotations"]
    }
    missing = 0
    for box_id, track, frame in _boxes(vis):
        ann = found.get(box_id)
        if ann is None or (ann.get("iscrowd") and not track.get("iscrowd")):
            missing += 1
            continue
        values = boxes[box_id], ann["segmentation"], int(mask_utils.area(ann["segmentation"]))
        for key, value in zip(PER_FRAME, values):
            tracks[track["id"]][key][frame] = value
    for track in vis["annotations"]:
        if track.get("iscrowd") and track.get("segmentations"):
            tracks[track["id"]] = track
    return {**vis, "annotations": list(tracks.values())}, missing


def _boxes(vis: dict[str, Any]) -> Iterator[tuple[int, dict, int]]:
    """Id, track and frame of every box."""
    box_id = 0
    for track in vis["annotations"]:
        for frame, bbox in enumerate(track["bboxes"]):
            box_id += 1
            if bbox is not None:
                yield box_id, track, frame
