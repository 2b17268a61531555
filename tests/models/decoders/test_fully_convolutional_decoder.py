# SPDX-License-Identifier: Apache-2.0
import torch
import torch.nn.functional as F

from mal_mmdet.models import FullyConvolutionalDecoder


def test_against_a_plain_convolutional_network():
    """Four convolutions and a 1 × 1 convolution to one channel, on a map at its own scale."""
    decoder = FullyConvolutionalDecoder(12, channels=8)
    decoder.init_weights()
    features = torch.randn(2, 12, 4, 6)
    maps = features
    for i, block in enumerate(decoder.pixel_head):
        if i == 3:
            maps = F.interpolate(maps, scale_factor=2, mode="bilinear", align_corners=False)
        maps = F.conv2d(maps, block.conv.weight, block.conv.bias, padding=1).relu()
    maps = F.conv2d(maps, decoder.key[:, :, None, None])
    expected = F.interpolate(maps, (16, 24), mode="bilinear", align_corners=False)[:, 0]
    torch.testing.assert_close(decoder(features, torch.tensor([2000.0, 3000.0])), expected)
