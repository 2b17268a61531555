# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from mmdet.registry import MODELS
from mmpretrain.models.utils import attention as mmpretrain_attention

from mal_mmdet.visualization import attention_maps, draw_attention
from mal_mmdet.visualization.attention_maps import attention_received, check_layers

SIZE, PATCH = 32, 8
BOX = torch.tensor([4.0, 9.0, 26.0, 30.0])


def vit(**options):
    arch = dict(embed_dims=24, num_layers=3, num_heads=2, feedforward_channels=16)
    cfg = dict(type="mmpretrain.VisionTransformer", arch=arch, img_size=SIZE, patch_size=PATCH)
    encoder = MODELS.build(cfg | dict(out_type="featmap") | options)
    encoder.eval()
    with torch.no_grad():  # far from uniform attention
        for name, parameter in encoder.named_parameters():
            parameter.copy_(torch.randn_like(parameter) * (0.5 if "qkv" in name else 0.2))
    return encoder


def queries_in_box(extra):
    """Share of each cell that the box covers, counted in pixels; extra tokens ask nothing."""
    pixels = torch.zeros(SIZE, SIZE)
    pixels[9:30, 4:26] = 1
    return F.pad(F.avg_pool2d(pixels[None], PATCH).flatten(), (extra, 0))


def weights_by_hand(encoder, crop):
    """The attention of every layer by the formula, the layers run one after the other."""
    weights = []
    tokens, _ = encoder.patch_embed(crop[None])
    if encoder.cls_token is not None:
        tokens = torch.cat([encoder.cls_token, tokens], 1)
    tokens = tokens + encoder.pos_embed
    for layer in encoder.layers:
        q, k, _ = layer.attn.qkv(layer.ln1(tokens))[0].chunk(3, dim=-1)
        heads = [(a, b) for a, b in zip(q.chunk(2, dim=-1), k.chunk(2, dim=-1))]
        weights.append(torch.stack([torch.softmax(a @ b.T / 12**0.5, -1) for a, b in heads]))
        tokens = layer(tokens)
    return weights


@pytest.mark.parametrize("with_cls_token", [True, False])
@torch.no_grad()
def test_maps_against_the_formula(with_cls_token):
    encoder, crop = vit(with_cls_token=with_cls_token), torch.randn(3, SIZE, SIZE)
    maps = attention_maps(encoder, crop, BOX, [3, 1])
    assert list(maps) == [3, 1]
    queries = queries_in_box(int(with_cls_token))
    weights = weights_by_hand(encoder, crop)
    for layer, found in maps.items():
        mean = weights[layer - 1].mean(0)
        expected = (queries[:, None] * mean).sum(0) / queries.sum()
        torch.testing.assert_close(found, expected[-16:].view(4, 4))
        assert found.sum() < 1 if with_cls_token else found.sum() == pytest.approx(1)
        assert found.std() > 0.005


@torch.no_grad()
def test_fused_and_plain_kernels_give_the_same_maps(monkeypatch):
    """mmpretrain's own unfused attention hands its weights to the value: the identity."""
    encoder, crop = vit(), torch.randn(3, SIZE, SIZE)
    fused = attention_maps(encoder, crop, BOX, [1, 2, 3])
    seen = []

    def plain(query, key, value, **kwargs):
        tokens = query.shape[-2]
        eye = torch.eye(tokens).expand(*query.shape[:-1], tokens)
        pyimpl = mmpretrain_attention.scaled_dot_product_attention_pyimpl
        seen.append(pyimpl(query, key, eye, **kwargs)[0])
        return pyimpl(query, key, value, **kwargs)

    for layer in encoder.layers:
        assert layer.attn.scaled_dot_product_attention is F.scaled_dot_product_attention
        monkeypatch.setattr(layer.attn, "scaled_dot_product_attention", plain)
    plain_maps = attention_maps(encoder, crop, BOX, [1, 2, 3])
    queries = queries_in_box(1)
    for layer, weights in zip((1, 2, 3), seen, strict=True):
        expected = (queries @ weights.mean(0) / queries.sum())[1:].view(4, 4)
        torch.testing.assert_close(fused[layer], expected)
        torch.testing.assert_close(plain_maps[layer], fused[layer])


def test_only_the_box_asks_and_the_hooks_are_gone():
    encoder, crop = vit(), torch.randn(3, SIZE, SIZE)
    left = attention_maps(encoder, crop, torch.tensor([0.0, 0, 8, 32]), [2])[2]
    right = attention_maps(encoder, crop, torch.tensor([24.0, 0, 32, 32]), [2])[2]
    assert not torch.allclose(left, right, atol=1e-3)
    assert not any(m._forward_hooks for m in encoder.modules())


def test_a_box_under_one_cell_asks_by_its_cell():
    query, key = torch.randn(2, 2, 5, 4)
    weights = torch.tensor([0, 0, 0.01, 0, 0])
    received = attention_received(query, key, weights)
    expected = torch.softmax(query[:, 2:3] @ key.mT / 2, -1)[:, 0].mean(0)
    torch.testing.assert_close(received, expected)


@pytest.mark.parametrize(
    "count, layers", [(12, [4, 8, 12]), (24, [8, 16, 24]), (4, [2, 3, 4]), (1, [1])]
)
def test_default_layers(count, layers):
    assert check_layers(None, count) == layers


@pytest.mark.parametrize("layer", [0, 4, -1])
def test_an_unknown_layer(layer):
    with pytest.raises(ValueError, match=rf"layers \[{layer}\] do not exist.*layers 1 to 3"):
        attention_maps(vit(), torch.randn(3, SIZE, SIZE), BOX, [1, layer])


@pytest.mark.parametrize(
    "backbone",
    [
        dict(type="mmdet.ResNet", depth=18),
        dict(type="mmpretrain.SwinTransformer", arch="tiny"),
        dict(type="mmpretrain.ConvNeXt", arch="atto"),
    ],
    ids=lambda cfg: cfg["type"],
)
def test_an_encoder_without_such_attention(backbone):
    name = backbone["type"].split(".")[1]
    with pytest.raises(ValueError, match=rf"{name} has no attention maps.*VisionTransformer"):
        attention_maps(MODELS.build(backbone), torch.randn(3, SIZE, SIZE), BOX, [1])


def test_windowed_attention_is_refused():
    encoder = vit()

    class Windows(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.attn = encoder.layers[0].attn

        def forward(self, crop):
            return self.attn(torch.randn(4, 4, 24))

    with pytest.raises(ValueError, match="layer 1 attends within windows"):
        attention_maps(Windows(), torch.randn(3, SIZE, SIZE), BOX, [1])


def test_panels():
    """The hottest cell is red, the coldest blue; a panel a layer after that of the crop."""
    attention = torch.zeros(4, 4)
    attention[3, 3] = 1
    image = np.full((64, 64, 3), 128, dtype=np.uint8)
    panels = draw_attention(
        {4: attention, 12: attention.flip(0, 1)}, image, np.array([8, 8, 40, 40])
    )
    assert [p.shape for p in panels] == [(64, 64, 3)] * 3
    first, second = (p.astype(int) for p in panels[1:])
    assert first[60, 60, 0] > first[60, 60, 2] and first[30, 60, 2] > first[30, 60, 0]
    assert second[50, 60, 2] > second[50, 60, 0]
    assert not np.array_equal(panels[1], panels[2])
