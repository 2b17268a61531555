# SPDX-License-Identifier: Apache-2.0
"""Encoder weights in the layouts of their publishers, from files that the tests write."""

import argparse
import logging

import pytest
import torch
from mmdet.registry import MODELS
from mmengine.config import Config
from mmpretrain.models import DeiT3
from torch import nn

from mal_mmdet.models import load_encoder, pretrained_encoder
from mal_mmdet.models.pretrained_encoder import match_keys
from tests.conftest import ROOT, tiny_config

ARCH = dict(embed_dims=32, num_layers=2, num_heads=2, feedforward_channels=64)


def vit(**options):
    options = dict(arch=ARCH, img_size=32, patch_size=8, out_type="featmap") | options
    return MODELS.build(dict(type="mmpretrain.VisionTransformer", **options))


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(32, eps=1e-6), nn.LayerNorm(32, eps=1e-6)
        self.attn = nn.ModuleDict(dict(qkv=nn.Linear(32, 96), proj=nn.Linear(32, 32)))
        self.mlp = nn.ModuleDict(dict(fc1=nn.Linear(32, 64), fc2=nn.Linear(64, 32)))

    def forward(self, x):
        q, k, v = self.attn.qkv(self.norm1(x)).unflatten(2, (3, 2, 16)).permute(2, 0, 3, 1, 4)
        weights = (q @ k.mT / 4).softmax(-1)
        x = x + self.attn.proj((weights @ v).transpose(1, 2).flatten(2))
        return x + self.mlp.fc2(nn.functional.gelu(self.mlp.fc1(self.norm2(x))))


class OriginalViT(nn.Module):
    """A ViT with the names of MAE, DeiT and MoCo v3, for crops of 32 pixels in patches of 8."""

    def __init__(self):
        super().__init__()
        self.cls_token = nn.Parameter(torch.randn(1, 1, 32))
        self.pos_embed = nn.Parameter(torch.randn(1, 17, 32))
        self.patch_embed = nn.ModuleDict(dict(proj=nn.Conv2d(3, 32, 8, 8)))
        self.blocks = nn.ModuleList(Block() for _ in range(2))
        self.norm = nn.LayerNorm(32, eps=1e-6)

    def forward(self, images):
        tokens = self.patch_embed.proj(images).flatten(2).mT
        x = torch.cat([self.cls_token.expand(len(images), -1, -1), tokens], 1) + self.pos_embed
        for block in self.blocks:
            x = block(x)
        return self.norm(x)[:, 1:].mT.unflatten(2, (4, 4))


def original_files(weights):
    """The containers that the publishers put the same weights into."""
    extra = {"head.weight": torch.zeros(10, 32), "head.bias": torch.zeros(10)}
    decoder = {f"decoder_blocks.0.{k}": torch.zeros(3) for k in ("norm1.weight", "mlp.fc1.bias")}
    moco = {f"module.base_encoder.{k}": v for k, v in (weights | extra).items()}
    moco |= {f"module.momentum_encoder.{k}": v + 1 for k, v in weights.items()}
    moco["module.predictor.0.weight"] = torch.zeros(4, 4)
    return {
        "mae": dict(model=weights | decoder, optimizer={}, args=argparse.Namespace(lr=1)),
        "deit": dict(model=weights | extra),
        "mocov3": dict(epoch=300, arch="vit_base", state_dict=moco),
        "timm": weights | extra,
    }


@pytest.mark.parametrize("publisher", ["mae", "deit", "mocov3", "timm"])
def test_original_layouts_give_the_original_features(publisher, tmp_path, monkeypatch):
    original = OriginalViT()
    path = str(tmp_path / "weights.pth")
    torch.save(original_files(original.state_dict())[publisher], path)
    encoder = vit()
    said = []
    monkeypatch.setattr(pretrained_encoder, "print_log", lambda *args: said.append(args))
    matched = load_encoder(encoder, path)
    assert len(matched) == len(original.state_dict()) == len(encoder.state_dict())
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(encoder(images)[-1], original(images), rtol=1e-4, atol=1e-5)
    ((message, _, level),) = said
    assert level == logging.INFO
    assert f"{len(matched)} of the encoder's {len(matched)} tensors loaded from {path}" in message
    assert "layers.1.ffn.layers.0.0.weight" in message
    assert "tensors of the file are not the encoder's and were left out" in message


def test_openmmlab_layout_with_a_prefix_and_another_grid(tmp_path):
    source = vit(img_size=64)
    source.init_weights()
    state = {f"backbone.{k}": v for k, v in source.state_dict().items()}
    torch.save(dict(state_dict=state | {"head.fc.weight": torch.zeros(2, 2)}), tmp_path / "a.pth")
    encoder = vit()
    load_encoder(encoder, str(tmp_path / "a.pth"))
    assert torch.equal(encoder.layers[1].attn.qkv.weight, source.layers[1].attn.qkv.weight)
    assert torch.equal(encoder.pos_embed[:, 0], source.pos_embed[:, 0])
    assert encoder.pos_embed.shape == (1, 17, 32) and source.pos_embed.shape == (1, 65, 32)


def test_deit3_fits_the_plain_class_and_gets_a_place_for_the_class_token(tmp_path):
    source = DeiT3(arch=ARCH, img_size=32, patch_size=8, use_layer_scale=True)
    torch.save(source.state_dict(), tmp_path / "deit3.pth")
    encoder = vit(layer_scale_init_value=1e-6)
    matched = load_encoder(encoder, str(tmp_path / "deit3.pth"))
    assert set(matched) == set(encoder.state_dict())
    assert torch.equal(encoder.pos_embed[:, 1:], source.pos_embed)
    assert not encoder.pos_embed[:, 0].any()


def test_what_is_missing_is_a_warning_that_names_it(tmp_path, monkeypatch):
    state = {k: v for k, v in vit().state_dict().items() if "layers.1.ffn" not in k}
    torch.save(state, tmp_path / "part.pth")
    said = []
    monkeypatch.setattr(pretrained_encoder, "print_log", lambda *args: said.append(args))
    load_encoder(vit(), str(tmp_path / "part.pth"))
    ((message, _, level),) = said
    assert level == logging.WARNING
    assert "4 keep their random start: layers.1.ffn.layers.0.0.bias" in message


def test_a_file_that_lacks_most_is_an_error(tmp_path):
    state = {k: v for k, v in vit().state_dict().items() if "layers" not in k}
    torch.save(state, tmp_path / "part.pth")
    with pytest.raises(ValueError, match=r"part.pth has only \d+% of the weights.*lacks layers.0"):
        load_encoder(vit(), str(tmp_path / "part.pth"))


def test_a_file_that_matches_nothing_is_an_error(tmp_path):
    torch.save(dict(model={"conv1.weight": torch.zeros(1)}), tmp_path / "other.pth")
    with pytest.raises(ValueError, match=r"no weight of .*other.pth matches.*conv1.weight"):
        load_encoder(vit(), str(tmp_path / "other.pth"))


def test_weights_of_another_size_name_the_config_field(tmp_path):
    wide = vit(arch=ARCH | dict(embed_dims=64))
    torch.save(wide.state_dict(), tmp_path / "wide.pth")
    with pytest.raises(ValueError, match=r"do not fit model.network.backbone"):
        load_encoder(vit(), str(tmp_path / "wide.pth"))


def test_the_longest_match_wins():
    wanted = {"a.weight", "b.weight"}
    one = {"x.a.weight": 1, "y.a.weight": 2, "y.b.weight": 3}
    assert match_keys(one, wanted) == {"a.weight": 2, "b.weight": 3}


def test_init_cfg_loads_the_encoder_of_student_and_teacher(tmp_path, demo):
    cfg = tiny_config(demo, tmp_path)
    source = MODELS.build(cfg.model.network.backbone)
    source.init_weights()
    torch.save(source.state_dict(), tmp_path / "encoder.pth")
    cfg.model.network.init_cfg = dict(
        type="PretrainedEncoder", checkpoint=str(tmp_path / "encoder.pth")
    )
    model = MODELS.build(cfg.model)
    model.init_weights()
    for network in (model.student, model.teacher):
        for key, value in network.backbone.state_dict().items():
            assert torch.equal(value, source.state_dict()[key]), key
        assert network.decoder.pixel_head[0].conv.weight.std() > 0.01


def test_timm_weights_load_behind_its_wrapper(tmp_path):
    timm = pytest.importorskip("timm")
    options = dict(embed_dim=64, depth=2, num_heads=2, dynamic_img_size=True)
    source = timm.create_model("vit_base_patch16_dinov3", **options)
    torch.save(source.state_dict(), tmp_path / "timm.pth")
    wrapper = dict(type="mmpretrain.TIMMBackbone", model_name="vit_base_patch16_dinov3")
    encoder = MODELS.build(wrapper | dict(features_only=True, out_indices=(-1,), **options))
    load_encoder(encoder, str(tmp_path / "timm.pth"))
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        expected = source.eval().forward_intermediates(
            images, indices=1, norm=False, intermediates_only=True
        )[-1]
        encoder.eval()
        torch.testing.assert_close(encoder(images)[-1], expected)


@pytest.mark.parametrize(
    "name, index, options",
    [
        ("convnext_atto", 2, dict()),
        ("tf_efficientnet_lite0", 3, dict(feature_cls="getter", output_stride=8)),
    ],
)
def test_weights_of_a_timm_model_load_into_its_feature_extractor(tmp_path, name, index, options):
    timm = pytest.importorskip("timm")
    stride = {k: v for k, v in options.items() if k == "output_stride"}
    source = timm.create_model(name, **stride)
    torch.save(dict(state_dict=source.state_dict()), tmp_path / "timm.pth")
    wrapper = dict(type="mmpretrain.TIMMBackbone", model_name=name, features_only=True)
    encoder = MODELS.build(wrapper | dict(out_indices=(index,), **options))
    load_encoder(encoder, str(tmp_path / "timm.pth"))
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        expected = source.eval().forward_intermediates(
            images, indices=[index], norm=False, intermediates_only=True
        )[-1]
        encoder.eval()
        torch.testing.assert_close(encoder(images)[-1], expected)


# What mmpretrain's own configs of these weights build, and what of it an encoder may lack.
SOURCES = {
    "swin-base": (dict(type="SwinTransformer", arch="base"), {"norm2.weight", "norm2.bias"}),
    "convnext-base": (dict(type="ConvNeXt", arch="base"), {"norm2.weight", "norm2.bias"}),
    "r101": (dict(type="ResNet", depth=101), set()),
    "vit-base-sam": (dict(type="ViTSAM", arch="base", img_size=1024), set()),
    "vit-base-p14-dinov2": (
        dict(arch="base", img_size=518, patch_size=14, layer_scale_init_value=1e-5),
        set(),
    ),
    "vit-base-mae": (dict(arch="base"), set()),
    "vit-small-deit": (dict(arch="deit-small"), set()),
    "vit-base-deit3": (dict(type="DeiT3", arch="base"), set()),
}


@pytest.mark.parametrize("name", SOURCES)
def test_the_configs_encoders_find_all_their_weights(name):
    source, lacks = SOURCES[name]
    cfg = Config.fromfile(ROOT / f"configs/mal/mal_{name}_8xb4-10e_coco.py")
    source = dict(type="VisionTransformer") | source
    source["type"] = f"mmpretrain.{source['type']}"
    state = MODELS.build(source).state_dict()
    encoder = MODELS.build(cfg.model.network.backbone)
    found = match_keys({f"backbone.{k}": v for k, v in state.items()}, set(encoder.state_dict()))
    assert {key for key, _ in encoder.named_parameters()} - set(found) == lacks
    for key, weight in encoder.named_parameters():
        if key in found and "pos_embed" not in key and "rel_pos" not in key:
            assert weight.shape == found[key].shape, key
