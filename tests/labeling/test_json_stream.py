# SPDX-License-Identifier: Apache-2.0
import io
import json
import math
import random

import pytest

from mal_mmdet.labeling import JSONList, ListWriter, json_stream, stream_json, write_around
from mal_mmdet.labeling.coco_file import read_json


def random_value(rng, depth=0):
    kind = rng.randrange(8 if depth < 3 else 6)
    if kind == 0:
        return rng.choice([True, False, None])
    if kind == 1:
        return rng.randrange(-(10**12), 10**12)
    if kind == 2:
        return rng.uniform(-1e3, 1e3)
    if kind < 6:
        return "".join(rng.choice('ab"\\/\n é中😀[]{},:') for _ in range(rng.randrange(9)))
    if kind == 6:
        return [random_value(rng, depth + 1) for _ in range(rng.randrange(4))]
    return {f"k{i}é": random_value(rng, depth + 1) for i in range(rng.randrange(4))}


@pytest.mark.parametrize("window", [1, 2, 7, 1 << 20])
@pytest.mark.parametrize("indent", [None, 3])
@pytest.mark.parametrize("ascii", [True, False])
def test_reads_what_json_reads(tmp_path, monkeypatch, window, indent, ascii):
    monkeypatch.setattr(json_stream, "WINDOW", window)
    rng, path = random.Random(0), tmp_path / "a.json"
    for _ in range(30):
        content = {
            "é": random_value(rng),
            "list": [random_value(rng) for _ in range(rng.randrange(5))],
            "last": random_value(rng),
        }
        text = json.dumps(content, indent=indent, ensure_ascii=ascii)
        path.write_text(text, encoding="utf-8")
        found = stream_json(path, "list")
        assert isinstance(found["list"], JSONList)
        assert len(found["list"]) == len(content["list"])
        for _ in range(2):  # it can be read again
            assert list(found) == list(content)
            assert {**found, "list": list(found["list"])} == content
        path.write_text(json.dumps(content["list"], indent=indent), encoding="utf-8")
        assert list(stream_json(path)) == content["list"]


def test_a_mark_of_utf8_is_not_content(tmp_path):
    path = tmp_path / "boxes.json"
    content = dict(images=[dict(file_name="ä.jpg")], annotations=[dict(id=1), dict(id=2)])
    path.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8-sig")
    found = stream_json(path, "annotations")
    assert {**found, "annotations": list(found["annotations"])} == content
    assert read_json(path) == content


def test_other_values_are_read_whole(tmp_path):
    path = tmp_path / "a.json"
    for text in ('{"list": 5}', '{"other": [1]}', "7", '"text"', "[1, 2]", "{}"):
        path.write_text(text)
        assert stream_json(path, "list") == json.loads(text)
    path.write_text('{"list": [NaN, -Infinity, 12, 1.5e3]}')
    values = list(stream_json(path, "list")["list"])
    assert math.isnan(values[0]) and values[1:] == [-math.inf, 12, 1500.0]


@pytest.mark.parametrize("window", [1, 1 << 20])
@pytest.mark.parametrize(
    "text, message",
    [
        ('{"list": [1, 2', "at byte 14, found the end of the file"),
        ('{"list": [1 2]}', r"expected one of ',\]' at byte 12, found '2'"),
        ('{"list": [1,]}', "Expecting value at byte 12"),
        ('{"list": [{"a": tru}]}', "Expecting value at byte 16"),
        ('{"list" [1]}', "expected one of ':' at byte 8"),
        ("{5: [1]}", "expected a name in quotes"),
        ('{"list": [1]} x', "more text after the end, at byte 14"),
        ("", "Expecting value at byte 0"),
        ('{"list": ["\\ud8', "at byte"),
    ],
)
def test_what_is_no_json_is_told_with_its_place(tmp_path, monkeypatch, window, text, message):
    monkeypatch.setattr(json_stream, "WINDOW", window)
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(ValueError, match=message):
        stream_json(tmp_path / "a.json", "list")


def test_bytes_that_are_no_utf8(tmp_path):
    (tmp_path / "a.json").write_bytes(b'{"list": ["\xff"]}')
    with pytest.raises(UnicodeDecodeError):
        stream_json(tmp_path / "a.json", "list")


@pytest.mark.parametrize("entries", [[], [1], [{"a": [1, "é"]}, None, "x"]])
def test_written_lists_are_json(entries):
    file = io.StringIO()
    writer = ListWriter(file)
    for entry in entries:
        writer.add(entry)
    writer.close()
    assert json.loads(file.getvalue()) == entries


@pytest.mark.parametrize("list_at", [0, 1, 2])
def test_an_object_is_written_around_its_list(list_at):
    names = ["ä", "b"]
    names.insert(list_at, "list")
    content = {name: [{"x": None}, 2] for name in names}
    file = io.StringIO()

    def write(writer):
        for entry in (1, {"y": "é"}):
            writer.add(entry)
        return "done"

    assert write_around(file, content, "list", write) == "done"
    assert json.loads(file.getvalue()) == content | {"list": [1, {"y": "é"}]}
    assert list(json.loads(file.getvalue())) == names
