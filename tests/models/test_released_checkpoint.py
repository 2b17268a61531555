# SPDX-License-Identifier: Apache-2.0
"""Files of the published layouts, written here, against the published network in plain torch."""

import argparse
import functools
import os
import zipfile

import pytest
import torch
import torch.nn.functional as F
from mmdet.registry import MODELS
from mmengine.config import Config
from mmengine.runner import load_checkpoint

from mal_mmdet.models.released_checkpoint import convert_released, load_tensors, resize_positions
from tests.conftest import ROOT
from tests.test_tools import run

C, HEADS, LAYERS = 384, 6, 12  # the small ViT
STEM, TAO = "conv-stem", "patch projection"


def released_network(layout, seed):
    """State of one published network, by its published names, with weights of lively size."""
    g = torch.Generator().manual_seed(seed)

    def rand(*shape):
        fan_in = max(torch.Size(shape[1:]).numel(), 1)
        return torch.randn(*shape, generator=g) * fan_in**-0.5

    def norm(name, size):
        return {
            f"{name}.weight": 1 + 0.1 * rand(size, 1)[:, 0],
            f"{name}.bias": 0.1 * rand(size, 1)[:, 0],
        }

    def layer(name, *shape):
        return {f"{name}.weight": rand(*shape), f"{name}.bias": 0.1 * rand(shape[0], 1)[:, 0]}

    state = {"backbone.cls_token": rand(1, 1, C), "backbone.pos_embed": rand(1, 197, C) * C**0.5}
    stem = "backbone.patch_embed.proj"
    if layout == STEM:
        widths = [3, C // 8, C // 4, C // 2, C]
        for i in range(4):
            state[f"{stem}.{i}.0.weight"] = rand(widths[i + 1], widths[i], 3, 3)
            state |= norm(f"{stem}.{i}.1", widths[i + 1])
        state |= layer(f"{stem}.3.3", C, C, 1, 1)
    else:
        state |= layer(stem, C, 3, 16, 16) | layer("backbone.head", 1000, C)
    for n in range(LAYERS):
        block = f"backbone.blocks.{n}"
        state |= norm(f"{block}.norm1", C) | norm(f"{block}.norm2", C)
        state |= layer(f"{block}.attn.qkv", 3 * C, C) | layer(f"{block}.attn.proj", C, C)
        state |= layer(f"{block}.mlp.fc1", 4 * C, C) | layer(f"{block}.mlp.fc2", C, 4 * C)
    state |= norm("backbone.norm", C)
    state |= layer("roi_head.mlp1", 256, C) | layer("roi_head.mlp2", 256, 256)
    for i in range(4):
        state |= layer(f"mask_head.convs.{i}.conv", 256, C if i == 0 else 256, 3, 3)
    return state


def released_forward(state, images, scale):
    """The published network: images (B, 3, S, S) → logits (B, 4h, 4w), V at ``scale``."""

    def get(name):
        return state[f"{name}.weight"], state[f"{name}.bias"]

    stem = "backbone.patch_embed.proj"
    if f"{stem}.weight" in state:
        maps = F.conv2d(images, *get(stem), stride=16)
    else:
        maps = images
        for i in range(4):
            maps = F.conv2d(maps, state[f"{stem}.{i}.0.weight"], stride=2, padding=1)
            maps = F.gelu(F.group_norm(maps, 1, *get(f"{stem}.{i}.1"), eps=1e-6))
        maps = F.conv2d(maps, *get(f"{stem}.3.3"))
    n = maps.shape[-1]
    token, grid = state["backbone.pos_embed"].split([1, 196], 1)
    grid = grid.mT.reshape(1, C, 14, 14)
    if n != 14 and f"{stem}.weight" in state:
        grid = F.interpolate(grid, (n, n), mode="bicubic", antialias=True, align_corners=False)
    elif n != 14:
        factors = ((n + 0.1) / 14,) * 2
        grid = F.interpolate(grid, scale_factor=factors, mode="bicubic", align_corners=False)
    x = torch.cat([state["backbone.cls_token"].expand(len(images), -1, -1), maps.flatten(2).mT], 1)
    x = x + torch.cat([token, grid.flatten(2).mT], 1)
    for i in range(LAYERS):
        block = f"backbone.blocks.{i}"
        y = F.layer_norm(x, (C,), *get(f"{block}.norm1"), eps=1e-6)
        qkv = F.linear(y, *get(f"{block}.attn.qkv")).unflatten(2, (3, HEADS, C // HEADS))
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        y = ((q @ k.mT) * (C // HEADS) ** -0.5).softmax(-1) @ v
        x = x + F.linear(y.transpose(1, 2).flatten(2), *get(f"{block}.attn.proj"))
        y = F.layer_norm(x, (C,), *get(f"{block}.norm2"), eps=1e-6)
        y = F.linear(F.gelu(F.linear(y, *get(f"{block}.mlp.fc1"))), *get(f"{block}.mlp.fc2"))
        x = x + y
    x = F.layer_norm(x, (C,), *get("backbone.norm"), eps=1e-6)[:, 1:]
    features = x.mT.unflatten(2, (n, n))
    key = F.linear(features.mean((2, 3)), *get("roi_head.mlp1")).relu()
    key = F.linear(key, *get("roi_head.mlp2"))
    maps = features
    if scale != 1:
        maps = F.interpolate(maps, scale_factor=scale, mode="bilinear", align_corners=False)
    for i in range(4):
        if i == 3:
            maps = F.interpolate(maps, scale_factor=2, mode="bilinear", align_corners=False)
        maps = F.conv2d(maps, *get(f"mask_head.convs.{i}.conv"), padding=1).relu()
    logits = (key[:, :, None, None] * maps).sum(1, keepdim=True)
    return F.interpolate(logits, (4 * n, 4 * n), mode="bilinear", align_corners=False)[:, 0]


@functools.cache
def released_file(layout):
    networks = dict(student=released_network(layout, 1), teacher=released_network(layout, 2))
    state = {f"{name}.{k}": v for name, net in networks.items() for k, v in net.items()}
    return networks, dict(
        state_dict=state,
        optimizer_states=[dict(state={0: dict(step=torch.tensor(3.0))}, param_groups=[])],
        hyper_parameters=argparse.Namespace(lr=1e-6),
        callbacks={},
    )


def convert(path, out, *options, code=0):
    return run("tools/model_converters/mal_released_to_mmdet.py", path, out, *options, code=code)


@pytest.mark.parametrize("layout, size", [(STEM, 96), (STEM, 224), (TAO, 96)])
def test_the_converted_model_is_the_published_one(layout, size, tmp_path):
    """Both networks, all three sizes of objects, with and without resized positions."""
    networks, content = released_file(layout)
    torch.save(content, tmp_path / "released.ckpt")
    done = convert(tmp_path / "released.ckpt", tmp_path / "mal.pth", "--crop-size", size)
    assert f"layout: {layout}, arch: deit-small, patch_size: 16, crop_size: {size}" in done.stdout

    name = "conv-stem" if layout == STEM else "mae"
    cfg = Config.fromfile(ROOT / f"configs/mal/mal_vit-base-{name}_8xb4-10e_coco.py")
    cfg.model.network.pop("init_cfg")
    cfg.merge_from_dict(
        {
            "model.network.backbone.arch": "deit-small",
            "model.network.backbone.img_size": size,
            "model.network.decoder.in_channels": C,
        }
    )
    model = MODELS.build(cfg.model).eval()
    load_checkpoint(model, str(tmp_path / "mal.pth"), strict=True)
    images = torch.randn(3, 3, size, size, generator=torch.Generator().manual_seed(0))
    areas, scales = torch.tensor([1024.0, 9216.0, 9217.0]), (0.5, 1, 2)
    with torch.no_grad():
        for which, state in networks.items():
            model.label_source = which
            expected = torch.cat(
                [released_forward(state, images[i : i + 1], scales[i]) for i in range(3)]
            )
            logits = model.mask_logits(images, areas)
            assert expected.std() > 0.1
            assert (logits - expected).abs().max() < 1e-4 * expected.abs().max(), which


@pytest.mark.parametrize("layout", [STEM, TAO])
def test_positions_of_the_huge_network(layout):
    """Its grid has 16 × 16 cells, also where its patches are of 14 pixels."""
    stored = torch.randn(1, 257, 8)
    grid = stored[:, 1:].mT.reshape(1, 8, 16, 16)
    if layout == STEM:
        grid = F.interpolate(grid, scale_factor=32.1 / 16, mode="bicubic", align_corners=False)
    else:
        grid = F.interpolate(grid, (32, 32), mode="bicubic", antialias=True)
    expected = torch.cat([stored[:, :1], grid.flatten(2).mT], 1)
    torch.testing.assert_close(resize_positions(stored, 32, layout), expected)


def test_positions_on_the_same_grid_stay_as_they_are():
    grid = torch.randn(1, 197, 8)
    for layout in (STEM, TAO):
        assert torch.equal(resize_positions(grid, 14, layout), grid)


def test_code_in_a_checkpoint_is_not_run(tmp_path):
    class Attack:
        def __reduce__(self):
            return os.system, (f"touch {tmp_path / 'attacked'}",)

    for i, zipped in enumerate((True, False)):
        content = dict(weights=torch.arange(3.0), objects=[Attack(), argparse.Namespace(a=1)])
        path = tmp_path / f"{i}.ckpt"
        torch.save(content, path, _use_new_zipfile_serialization=zipped)
        loaded = load_tensors(path)
        assert loaded["weights"].tolist() == [0, 1, 2] and len(loaded["objects"]) == 2
    assert not (tmp_path / "attacked").exists()

    # torch.load runs such a file in spite of its unpickler, also one that Python sees no zip in.
    program = tmp_path / "program.ckpt"
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), program)
    for end in (b"", b"PK\x05\x06"):
        program.write_bytes(program.read_bytes() + end)
        assert zipfile.is_zipfile(program) == (not end)
        with pytest.raises(ValueError, match=r"program.ckpt is a TorchScript program"):
            load_tensors(program)


def test_unusable_files_say_why(tmp_path):
    _, content = released_file(TAO)
    with pytest.raises(ValueError, match="encrypted; export it"):
        convert_released(dict(state_dict=b"secret", state_dict_encrypted=True), 512)
    with pytest.raises(ValueError, match="no 'state_dict'"):
        convert_released(dict(model={}), 512)
    with pytest.raises(ValueError, match="multiple of 16"):
        convert_released(content, 500)
    odd = {**content["state_dict"], "student.neck.weight": torch.zeros(1)}
    missing = odd.pop("teacher.roi_head.mlp2.bias")
    assert missing is not None
    with pytest.raises(ValueError, match=r"student.neck.weight.*teacher.decoder.instance_head.2"):
        convert_released(dict(state_dict=odd), 512)
    with pytest.raises(ValueError, match=r"width is None.*conv1.weight"):
        convert_released(dict(state_dict={"conv1.weight": torch.zeros(1)}), 512)

    (tmp_path / "text.ckpt").write_text("no checkpoint")
    error = convert(tmp_path / "text.ckpt", tmp_path / "out.pth", code=1).stderr
    assert "text.ckpt is not a torch checkpoint" in error
    assert "does not exist" in convert("nowhere.ckpt", tmp_path / "out.pth", code=1).stderr
    assert not (tmp_path / "out.pth").exists()
