# SPDX-License-Identifier: Apache-2.0
import pytest
import torch
from mmdet.registry import MODELS
from PIL import Image

from mal_mmdet.apis import draw_attention_maps
from mal_mmdet.labeling import read_coco
from tests.conftest import tiny_config


@pytest.fixture
def task(demo, tmp_path):
    """Config, checkpoint and files; the teacher differs from the student."""
    cfg = tiny_config(demo, tmp_path, **{"model.network.backbone.arch.num_layers": 3})
    model = MODELS.build(cfg.model)
    model.init_weights()
    with torch.no_grad():
        for p in model.teacher.parameters():
            p.copy_(torch.randn_like(p) * 0.3)
    torch.save(dict(state_dict=model.state_dict()), tmp_path / "mal.pth")
    return cfg, tmp_path / "mal.pth", demo / "boxes_val.json", demo / "val"


def test_chosen_boxes_and_layers(task, tmp_path):
    ids = [a["id"] for a in read_coco(task[2])["annotations"]]
    wanted = [ids[3], str(ids[0])]
    paths = draw_attention_maps(*task, tmp_path / "out", ids=wanted, layers=[1, 3], size=40)
    assert [p.name for p in paths] == [f"attention_{i}.png" for i in wanted]
    assert Image.open(paths[0]).size == (3 * 40 + 8, 40 + 4)
    assert paths[0].read_bytes() != paths[1].read_bytes()


def test_random_boxes_and_the_teacher(task, tmp_path):
    student = draw_attention_maps(*task, tmp_path / "student", number=2, size=40)
    teacher = draw_attention_maps(*task, tmp_path / "teacher", number=2, size=40, source="teacher")
    assert [p.name for p in student] == [p.name for p in teacher] and len({*student}) == 2
    assert Image.open(student[0]).size == (4 * 40 + 8, 40 + 4)  # the crop and layers 1, 2, 3
    assert all(s.read_bytes() != t.read_bytes() for s, t in zip(student, teacher))


def test_of_several_crops_the_first_is_drawn(task, tmp_path):
    one = draw_attention_maps(*task, tmp_path / "one", number=1, size=40)
    task[0].test_dataloader.dataset.pipeline[0].margin = [0.3, 0.1]
    several = draw_attention_maps(*task, tmp_path / "several", number=1, size=40)
    assert one[0].read_bytes() == several[0].read_bytes()


@pytest.mark.parametrize(
    "options, words",
    [
        (dict(ids=[1, 777]), r"annotations \[777\] are not among the \d+ usable boxes of .*val"),
        (dict(layers=[1, 4]), r"layers \[4\] do not exist: the encoder has layers 1 to 3"),
        (dict(source="both"), r"source is 'both', but must be one of"),
        (dict(number=0), "number is 0, but must be at least 1"),
    ],
)
def test_bad_choices(task, tmp_path, options, words):
    with pytest.raises(ValueError, match=words):
        draw_attention_maps(*task, tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_a_checkpoint_of_another_network(task, tmp_path):
    task[0].model.network.backbone.arch.num_layers = 2
    words = r"is not a checkpoint of the config's network \(model.network\)(.|\n)*layers\.2"
    with pytest.raises(ValueError, match=words):
        draw_attention_maps(*task, tmp_path / "out")
    with pytest.raises(FileNotFoundError, match=r"there is no checkpoint .*nope"):
        draw_attention_maps(task[0], tmp_path / "nope.pth", *task[2:], tmp_path / "out")
