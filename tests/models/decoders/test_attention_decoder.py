# SPDX-License-Identifier: Apache-2.0
import pytest
import torch
import torch.nn.functional as F

from mal_mmdet.models import AttentionDecoder


def naive_logits(decoder, feature, scale):
    """One crop, written out: K of the unscaled map, V of the scaled one."""
    key = decoder.instance_head(feature.mean((1, 2)))
    value = feature[None]
    if scale != 1:
        value = F.interpolate(value, scale_factor=scale, mode="bilinear", align_corners=False)
    for i, block in enumerate(decoder.pixel_head):
        if i == 3:
            value = F.interpolate(value, scale_factor=2, mode="bilinear", align_corners=False)
        value = F.conv2d(value, block.conv.weight, block.conv.bias, padding=1).clamp(min=0)
    logits = (key[:, None, None] * value[0]).sum(0)
    size = [4 * side for side in feature.shape[1:]]
    return F.interpolate(logits[None, None], size, mode="bilinear", align_corners=False)[0, 0]


@pytest.mark.parametrize("scale_adaptive", [True, False])
def test_against_one_crop_at_a_time(scale_adaptive):
    decoder = AttentionDecoder(12, channels=8, scale_adaptive=scale_adaptive)
    decoder.init_weights()
    features = torch.randn(6, 12, 4, 6)
    areas = torch.tensor([1e5, 32.0**2, 40.0**2, 96.0**2, 5.0, 96.0**2 + 1])
    scales = [2, 0.5, 1, 1, 0.5, 2] if scale_adaptive else [1] * 6
    found = decoder(features, areas)
    assert found.shape == (6, 16, 24)
    for feature, scale, logits in zip(features, scales, found):
        torch.testing.assert_close(logits, naive_logits(decoder, feature, scale))


def test_every_crop_and_every_weight_gets_a_gradient():
    decoder = AttentionDecoder(12, channels=8)
    decoder.init_weights()
    features = torch.randn(3, 12, 4, 4, requires_grad=True)
    decoder(features, torch.tensor([10.0, 2000.0, 1e5])).square().sum().backward()
    assert (features.grad.flatten(1).abs().sum(1) > 0).all()
    assert all(p.grad.abs().sum() > 0 for p in decoder.parameters())
