# SPDX-License-Identifier: Apache-2.0
import errno
import json
import os
import stat
from pathlib import Path

import pytest

from mal_mmdet.labeling import LabelShards, common_fingerprint
from mal_mmdet.labeling import shards as module

FINGERPRINT = dict(weights="a", boxes="b")


def record(index):
    return index, dict(segmentation=dict(size=[4, 5], counts="é" * index), area=index)


@pytest.fixture
def folder(tmp_path):
    """Two shards: samples 0, 1 and 4 with annotations 5, 2, 0 and 7."""
    shards = LabelShards(tmp_path / "out.json.shards", FINGERPRINT)
    shards.open(resume=False)
    shards.write([4], [record(5), record(2)])
    shards.write([0, 1], [record(0), record(7)])
    shards.release()
    return shards.folder


def test_labels_are_found_by_the_index_of_their_annotation(folder):
    shards = LabelShards(folder, FINGERPRINT)
    shards.open(resume=True)
    assert shards.finished_samples() == {0, 1, 4}
    labels = shards.labels(9)
    for index in (5, 0, 2, 7):
        assert labels.get(index) == record(index)[1]
    assert labels.get(1) is None and labels.get(8) is None
    shards.remove()
    assert not folder.exists()


def test_shards_are_not_mixed_with_those_of_another_run(folder):
    with pytest.raises(RuntimeError, match=r"2 shards of an earlier run.*--resume, or remove"):
        LabelShards(folder, FINGERPRINT).open(resume=False)
    for other in (dict(weights="a", boxes="c"), dict(weights="a"), FINGERPRINT | dict(boxes=None)):
        with pytest.raises(RuntimeError, match="with other boxes; labels of both"):
            LabelShards(folder, other).open(resume=True)
    with pytest.raises(RuntimeError, match="with other weights, boxes; labels of both"):
        LabelShards(folder, dict(boxes="x")).open(resume=True)
    assert LabelShards(folder, FINGERPRINT).open(resume=True) == 0
    assert LabelShards(folder).finished_samples() == {0, 1, 4}


@pytest.mark.parametrize("damage", ["cut", "emptied", "flipped", "header"])
def test_damaged_shards_are_thrown_out(folder, damage):
    shard = sorted(folder.glob("*.shard"))[0]
    content = bytearray(shard.read_bytes())
    if damage == "cut":
        content = content[:-4]
    elif damage == "emptied":
        content = b""
    elif damage == "flipped":
        content[-3] ^= 1
    else:
        content[content.index(b"[0, 1]") + 1] = ord("3")
    shard.write_bytes(content)
    (folder / ".0000000007.shard.x3").write_text("half")  # of a process that was killed
    shards = LabelShards(folder, FINGERPRINT)
    assert shards.open(resume=True) == 1
    assert shards.finished_samples() == {4} and not shard.exists()
    assert shards.labels(9).get(0) is None and shards.labels(9).get(5) == record(5)[1]
    assert not list(folder.glob(".*"))


def test_a_second_process_is_refused(folder):
    holder = LabelShards(folder, FINGERPRINT)
    holder.open(resume=True)
    assert "another process is writing labels to" in tried_elsewhere(folder)
    holder.release()
    assert tried_elsewhere(folder) == ""


def tried_elsewhere(folder):
    """What another process hears that opens the folder."""
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        try:
            LabelShards(folder, FINGERPRINT).open(resume=True)
        except RuntimeError as error:
            os.write(writer, str(error).encode())
        finally:
            os._exit(0)
    os.close(writer)
    with open(reader, encoding="utf-8") as said:
        text = said.read()
    assert os.waitpid(child, 0)[1] == 0
    return text


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOLCK])
def test_file_systems_without_locks(folder, monkeypatch, number):
    def lockf(*args):
        raise OSError(number, os.strerror(number))

    told = []
    monkeypatch.setattr(module.fcntl, "lockf", lockf)
    monkeypatch.setattr(module, "print_log", lambda text, **options: told.append(text))
    assert LabelShards(folder, FINGERPRINT).open(resume=True) == 0
    assert len(told) == 1 and "has no locks" in told[0]


def test_file_systems_that_cannot_sync_folders(folder, monkeypatch):
    fsync = os.fsync

    def files_alone(descriptor):
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", files_alone)
    written = LabelShards(folder, FINGERPRINT)
    written.open(resume=True)
    written.write([9], [record(1)])
    assert written.labels(10).get(1) == record(1)[1]


def test_a_full_disk_loses_no_finished_shard(folder, monkeypatch):
    shards = LabelShards(folder, FINGERPRINT)
    shards.open(resume=True)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}

    def fill(path, content):
        with open(path, "wb") as file:
            file.write(content[: len(content) // 2])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "write_bytes", fill)
    with pytest.raises(
        OSError, match=r"No space left.*make room, then run .* with --resume"
    ) as error:
        shards.write([9], [record(1)])
    assert error.value.errno == errno.ENOSPC
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_a_shard_without_fingerprint_belongs_to_nobody(folder):
    (folder / "fingerprint.json").unlink()
    with pytest.raises(RuntimeError, match="with other weights, boxes"):
        LabelShards(folder, FINGERPRINT).open(resume=True)


def test_an_empty_folder_is_no_earlier_run(tmp_path):
    shards = LabelShards(tmp_path / "a/b.shards", FINGERPRINT)
    assert shards.open(resume=True) == 0
    assert json.loads((shards.folder / "fingerprint.json").read_text()) == FINGERPRINT
    assert shards.finished_samples() == set() and shards.labels(3).get(1) is None


def test_images_that_could_not_be_used_are_tried_again(folder):
    shards = LabelShards(folder, FINGERPRINT)
    shards.open(resume=True)
    shards.write([6], [(8, dict(problem="no image"))], failed=True)
    assert shards.labels(9).get(8) == dict(problem="no image") and len(shards.failures()) == 1
    assert shards.finished_samples() == {0, 1, 4} and shards.failed_samples() == {6}
    shards.release()
    again = LabelShards(folder, FINGERPRINT)
    assert again.open(resume=True) == 0
    assert again.failures() == [] and again.labels(9).get(8) is None


def test_a_lost_process_of_another_run_is_not_listened_to(folder):
    lost = LabelShards(folder, dict(weights="old"))
    lost.write([4], [(5, dict(segmentation="old")), (8, dict(segmentation="old"))])
    shards = LabelShards(folder, FINGERPRINT)
    assert shards.labels(9).get(5) == record(5)[1] and shards.labels(9).get(8) is None
    assert len(shards.shards()) == 2
    for path in folder.iterdir():
        path.unlink()
    folder.rmdir()
    with pytest.raises(OSError, match=r"folder has been removed"):
        lost.write([4], [record(5)])
    assert not folder.exists()


def test_ranks_take_the_fingerprint_of_the_main_one(monkeypatch):
    mine = dict(weights="a", boxes="b", images="/data", device="A100-40", software="s")
    texts = []
    monkeypatch.setattr(module, "print_log", lambda text, *args, **options: texts.append(text))

    def common(**others):
        everyone = [mine | others, mine]
        monkeypatch.setattr(module, "all_gather_object", lambda fingerprint: everyone)
        return common_fingerprint(mine)

    assert common() == mine and common(images="/scratch") == mine | dict(images="/scratch")
    assert not texts
    assert common(device="A100-80")["device"] == "A100-80"
    assert len(texts) == 1 and "have other device: the last bits" in texts[0]
    with pytest.raises(RuntimeError, match="have other weights, boxes, and their labels do not"):
        common(weights="c", boxes="d", software="t")
