# SPDX-License-Identifier: Apache-2.0
import torch

from mal_mmdet.models import FullyConnectedDecoder


def test_against_the_sums_written_out():
    decoder = FullyConnectedDecoder(12, channels=8, mask_size=16)
    features = torch.randn(2, 12, 4, 4)
    first, _, second = decoder.mlp
    for logits, feature in zip(decoder(features, torch.tensor([10.0, 1e5])), features):
        hidden = (first.weight @ feature.mean((1, 2)) + first.bias).clamp(min=0)
        mask = second.weight @ hidden + second.bias
        torch.testing.assert_close(logits, mask.view(16, 16))


def test_its_mask_is_brought_to_the_size_of_the_map():
    decoder = FullyConnectedDecoder(12, channels=8, mask_size=5)
    assert decoder(torch.randn(2, 12, 3, 4), torch.ones(2)).shape == (2, 12, 16)
