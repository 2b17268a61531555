# SPDX-License-Identifier: Apache-2.0
import pytest
import torch

from mal_mmdet.models import QueryDecoder


def test_the_key_is_what_the_query_finds_in_its_own_crop():
    decoder = QueryDecoder(12, channels=16, num_layers=1, num_heads=2).eval()
    features = torch.randn(3, 12, 4, 6)
    keys = decoder.keys(features)
    assert keys.shape == (3, 16)
    assert not torch.allclose(keys[0], keys[1])
    torch.testing.assert_close(decoder.keys(features[1:2]), keys[1:2])
    # Cross-attention is a weighted sum over tokens: their order does not count.
    shuffled = features.flatten(2)[:, :, torch.randperm(24)].view_as(features)
    torch.testing.assert_close(decoder.keys(shuffled), keys)


def test_one_head_written_out():
    """Self-attention of one query is its value; cross-attention is softmax(q·k/√D) v."""
    decoder = QueryDecoder(12, channels=16, num_layers=1, num_heads=1).eval()
    features = torch.randn(1, 12, 2, 3)
    (layer,) = decoder.layers.layers
    tokens = decoder.token_projection(features[0].flatten(1).T)

    def attend(attention, query, memory):
        q, k, v = (
            x @ w.T + b
            for x, w, b in zip(
                (query, memory, memory),
                attention.in_proj_weight.chunk(3),
                attention.in_proj_bias.chunk(3),
            )
        )
        return attention.out_proj((q @ k.T / 16**0.5).softmax(1) @ v)

    x = decoder.query[0]
    x = layer.norm1(x + attend(layer.self_attn, x, x))
    x = layer.norm2(x + attend(layer.multihead_attn, x, tokens))
    x = layer.norm3(x + layer.linear2(layer.linear1(x).relu()))
    torch.testing.assert_close(decoder.keys(features), x)


def test_heads_that_do_not_divide_the_channels_are_named():
    with pytest.raises(ValueError, match=r"channels is 48.*num_heads=7"):
        QueryDecoder(12, channels=48, num_heads=7)
