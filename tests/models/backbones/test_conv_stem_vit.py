# SPDX-License-Identifier: Apache-2.0
import torch
import torch.nn.functional as F
from torch import nn

from mal_mmdet.models import ConvStemVisionTransformer

ARCH = dict(embed_dims=32, num_layers=2, num_heads=2, feedforward_channels=32)


def test_the_stem_against_plain_convolutions():
    vit = ConvStemVisionTransformer(arch=ARCH, img_size=64, out_type="featmap")
    images = torch.randn(2, 3, 64, 96)
    maps = images
    for i, stage in enumerate(vit.patch_embed.projection):
        assert stage[0].weight.shape == (4 * 2**i, 3 if i == 0 else 2 ** (i + 1), 3, 3)
        maps = F.conv2d(maps, stage[0].weight, stride=2, padding=1)
        mean = maps.flatten(1).mean(1)[:, None, None, None]
        var = maps.flatten(1).var(1, unbiased=False)[:, None, None, None]
        maps = (maps - mean) / (var + 1e-6).sqrt()
        maps = 0.5 * maps * (1 + torch.erf(maps / 2**0.5))
    maps = F.conv2d(maps, stage[3].weight, stage[3].bias)
    tokens, grid = vit.patch_embed(images)
    assert grid == (4, 6) and vit(images)[-1].shape == (2, 32, 4, 6)
    torch.testing.assert_close(tokens, maps.flatten(2).mT)


def test_the_stem_learns_where_the_layers_are_frozen():
    vit = ConvStemVisionTransformer(arch=ARCH, img_size=64, out_type="featmap", frozen_stages=2)
    assert all(p.requires_grad for p in vit.patch_embed.parameters())
    assert not any(p.requires_grad for p in vit.layers.parameters())
    assert isinstance(vit.patch_embed.projection[0][0], nn.Conv2d)
