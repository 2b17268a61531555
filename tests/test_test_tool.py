# SPDX-License-Identifier: Apache-2.0
"""``tools/test.py``: drawing where images are missing, and test-time augmentation."""

import json
import re
import runpy
import shutil
import sys

import pytest
import torch
from mmdet.registry import MODELS
from mmengine.config import Config
from mmengine.runner import Runner
from PIL import Image

from mal_mmdet.apis import generate_labels
from mal_mmdet.datasets.demo_dataset import SIZE
from mal_mmdet.evaluation import evaluate_label_files
from mal_mmdet.labeling import paste_mask
from mal_mmdet.models import MaskAutoLabeler
from tests.conftest import ROOT, forget_runners, tiny_config


@pytest.fixture
def tool(monkeypatch):
    """Runs the tool in this process, which has its imports already."""

    def run(*args) -> None:
        forget_runners()
        monkeypatch.setattr(sys, "argv", ["test.py", *map(str, args)])
        runpy.run_path(str(ROOT / "tools/test.py"), run_name="__main__")

    return run


def save_untrained(cfg, folder):
    """Config and checkpoint of random weights, as files."""
    cfg.dump(folder / "config.py")
    torch.manual_seed(0)
    model = MODELS.build(cfg.model)
    model.init_weights()
    torch.save(dict(state_dict=model.state_dict(), meta={}), folder / "model.pth")
    return folder / "config.py", folder / "model.pth"


def test_images_that_cannot_be_read_are_not_drawn(demo, tmp_path, tool, capsys):
    """One is missing and one cut off; the others are drawn and measured."""
    data = tmp_path / "data"
    shutil.copytree(demo, data)
    (data / "val/00002.jpg").unlink()
    content = (data / "val/00003.jpg").read_bytes()
    (data / "val/00003.jpg").write_bytes(content[:200])
    cfg = tiny_config(data, tmp_path / "work", log_level="INFO")
    files = save_untrained(cfg, tmp_path)
    tool(*files, "--show-dir", "drawn")
    drawn = {path.name: path for path in (tmp_path / "work").glob("*/drawn/*")}
    assert set(drawn) == {"00001.jpg", "00004.jpg"}
    assert all(Image.open(path).size == (2 * SIZE, SIZE) for path in drawn.values())
    boxes = json.loads((data / "boxes_val.json").read_text())["annotations"]
    lost = sum(ann["image_id"] in (2, 3) for ann in boxes)
    text = capsys.readouterr().out
    assert lost and f"mask/num: {len(boxes)} " in text and f"mask/num_missing: {lost} " in text
    assert float(re.search(r"mask/miou: ([\d.]+)", text)[1]) > 0
    for reason in (
        r"WARNING - image .*00002\.jpg cannot be read \(FileNotFoundError",
        r"WARNING - image .*00003\.jpg cannot be read",
        r"WARNING - 2 of 4 images could not be used; their boxes count as missed",
    ):
        assert re.search(reason, text), reason


@pytest.mark.parametrize("how", [(), ("--show-dir", "drawn"), ("--out", "out.pkl")])
def test_masks_fill_images_only_where_needed(demo, tmp_path, tool, monkeypatch, capsys, how):
    cfg = tiny_config(demo, tmp_path / "work", log_level="INFO")
    files = save_untrained(cfg, tmp_path)
    labels, boxes = tmp_path / "labels.json", demo / "boxes_val.json"
    generate_labels(cfg, files[1], boxes, demo / "val", labels)
    expected = evaluate_label_files(labels, demo / "instances_val.json")["miou"]
    pasted = []
    module = sys.modules[MaskAutoLabeler.__module__]

    def note(*args, **kwargs):
        pasted.append(paste_mask(*args, **kwargs))
        return pasted[-1]

    monkeypatch.setattr(module, "paste_mask", note)
    monkeypatch.chdir(tmp_path)
    tool(*files, *how)
    assert bool(pasted) == bool(how)
    assert "paste_masks" not in (tmp_path / "work/config.py").read_text()
    found = re.findall(r"mask/miou: ([\d.]+)", capsys.readouterr().out)
    assert float(found[-1]) == pytest.approx(expected, abs=1e-4)


def test_validation_goes_on_without_images_that_cannot_be_read(demo, tmp_path, capsys):
    """And draws the others, if it is asked to."""
    data = tmp_path / "data"
    shutil.copytree(demo, data)
    (data / "val/00001.jpg").unlink()
    cfg = tiny_config(data, tmp_path / "work", log_level="INFO")
    cfg.default_hooks.visualization.update(draw=True, interval=1)
    cfg.val_dataloader, cfg.val_evaluator = cfg.test_dataloader, cfg.test_evaluator
    cfg.val_cfg = dict(type="ValLoop")
    Runner.from_cfg(cfg).val()
    assert len(list((tmp_path / "work").rglob("val_img_*.png"))) == 3
    text = capsys.readouterr().out
    assert re.search(r"WARNING - image .*00001\.jpg cannot be read", text)
    assert "1 of 4 images could not be used; their boxes count as missed" in text


def test_the_checkpoint_that_is_named_is_tested(demo, tmp_path, tool, capsys):
    """Not the latest in the work dir of a training that was resumed, as its config says."""
    work = tmp_path / "work"
    config, checkpoint = save_untrained(tiny_config(demo, work, log_level="INFO"), tmp_path)
    state = torch.load(checkpoint, weights_only=True)["state_dict"]
    zeros = {key: torch.zeros_like(value) for key, value in state.items()}
    work.mkdir()
    torch.save(dict(state_dict=zeros, meta=dict(epoch=4, iter=9)), work / "epoch_4.pth")
    (work / "last_checkpoint").write_text(str(work / "epoch_4.pth"))
    found = []
    for resume in (False, True):
        tool(config, checkpoint, "--cfg-options", f"resume={resume}")
        found += re.findall(r"mask/miou: ([\d.]+)", capsys.readouterr().out)
    assert len(found) == 2 and found[0] == found[1]


def test_tta_needs_a_config_of_it(demo, tmp_path, tool):
    files = save_untrained(tiny_config(demo, tmp_path / "work"), tmp_path)
    with pytest.raises(SystemExit, match=r"--tta needs tta_model .* model.flip_test=True"):
        tool(*files, "--tta")


def test_tta_of_a_detector(demo, tmp_path, tool):
    """Of an image and its mirror image; the checkpoint is loaded into the model inside."""
    cfg = Config.fromfile(ROOT / "configs/faster_rcnn/faster-rcnn_demo.py")
    cfg.tta_model = dict(
        type="DetTTAModel", tta_cfg=dict(nms=dict(type="nms", iou_threshold=0.5), max_per_img=20)
    )
    load, resize, _, pack = cfg.test_dataloader.dataset.pipeline
    pack.meta_keys = (*pack.meta_keys, "flip", "flip_direction")
    flips = [dict(type="RandomFlip", prob=prob) for prob in (0.0, 1.0)]
    cfg.tta_pipeline = [load, dict(type="TestTimeAug", transforms=[[resize], flips, [pack]])]
    cfg.model.test_cfg.rcnn.score_thr = 0.0  # untrained scores are low
    cfg.test_dataloader.dataset.data_root = str(demo)
    cfg.test_evaluator.update(ann_file=str(demo / "instances_val.json"))
    cfg.log_level = "WARNING"
    cfg.custom_hooks = [dict(type="EMAHook")]  # as RTMDet's configs have
    files = save_untrained(cfg, tmp_path)
    found = {}
    for name, option in dict(plain=[], tta=["--tta"]).items():
        prefix = tmp_path / name
        options = ["--cfg-options", f"test_evaluator.outfile_prefix={prefix}"]
        tool(*files, "--work-dir", tmp_path / f"work_{name}", *option, *options)
        found[name] = json.loads((tmp_path / f"{name}.bbox.json").read_text())
    one, both = ({(d["image_id"], *d["bbox"]) for d in found[name]} for name in ("plain", "tta"))
    assert one != both
    # Half of what both views say together was said by the first; other weights would say nothing
    # of it.
    assert len(one & both) > len(both) / 4
