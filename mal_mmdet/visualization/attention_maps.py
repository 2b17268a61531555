# SPDX-License-Identifier: Apache-2.0
"""Where a ViT's layers look: attention maps of a box (paper, Sec. 4)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import numpy as np
import torch
import torch.nn.functional as F
from mmdet.visualization import DetLocalVisualizer
from mmpretrain.models.utils import MultiheadAttention
from torch import Tensor, nn

from mal_mmdet.structures import box_masks

from .panels import draw_panel


def attention_modules(encoder: nn.Module) -> list[MultiheadAttention]:
    """The attention of every layer, in the order of the layers.

    Raises:
        ValueError: The encoder has none that can be read.
    """
    modules = [m for m in encoder.modules() if isinstance(m, MultiheadAttention)]
    if not modules:
        raise ValueError(
            f"{type(encoder).__name__} has no attention maps to draw: supported are encoders "
            "whose layers attend with mmpretrain's MultiheadAttention, such as "
            "mmpretrain.VisionTransformer (MAE, DeiT, DINOv2, …); not ViTSAM, Swin, ConvNeXt, "
            "ResNet or a TIMMBackbone"
        )
    return modules


def check_layers(layers: Sequence[int] | None, count: int) -> list[int]:
    """The layers to draw; by default those after one, two and three thirds of the encoder.

    Args:
        layers: Numbers from 1, or None.
        count: How many layers the encoder has.

    Raises:
        ValueError: A layer does not exist.
    """
    if layers is None:
        return sorted({math.ceil(count * third / 3) for third in (1, 2, 3)})
    unknown = [layer for layer in layers if not 1 <= layer <= count]
    if unknown:
        raise ValueError(f"layers {unknown} do not exist: the encoder has layers 1 to {count}")
    return list(layers)


@contextmanager
def capture_qkv(modules: Mapping[int, MultiheadAttention]) -> Iterator[dict[int, Tensor]]:
    """Keeps what the modules' projections to query, key and value return.

    The projection stands before the attention itself, so it does not matter whether that runs
    in a fused kernel, which never has the weights in memory.

    Args:
        modules: A key of the caller's → module.

    Yields:
        The same key → (B, N, 3 · C), filled by a forward pass of the encoder.
    """
    captured: dict[int, Tensor] = {}

    def keeper(key: int):
        def keep(module: nn.Module, inputs: tuple, output: Tensor) -> None:
            captured[key] = output

        return keep

    handles = [m.qkv.register_forward_hook(keeper(key)) for key, m in modules.items()]
    try:
        yield captured
    finally:
        for handle in handles:
            handle.remove()


def attention_received(query: Tensor, key: Tensor, query_weights: Tensor) -> Tensor:
    """Attention that each token receives, averaged over heads and some queries.

    Args:
        query, key: Shape (heads, N, d).
        query_weights: Weight of each token as a query, not negative, not all 0, shape (N,).

    Returns:
        float32, shape (N,); sums to 1.
    """
    used = query_weights > 0  # the other rows of the N × N attention are never made
    logits = query[:, used].float() @ key.float().transpose(1, 2) * query.shape[-1] ** -0.5
    weights = query_weights[used].float()
    return torch.einsum("hqn,q->n", logits.softmax(-1), weights / weights.sum()) / len(query)


@torch.no_grad()
def attention_maps(
    encoder: nn.Module, crop: Tensor, bbox: Tensor, layers: Sequence[int]
) -> dict[int, Tensor]:
    """What the tokens inside a box look at, in some layers of a ViT.

    A map is the attention that every cell receives, averaged over the heads and over the
    queries inside the original box, each weighted by the share of its cell that the box covers:
    it answers where the object gathers its evidence from. Attention that goes to class or
    register tokens is not drawn, so that a map sums to at most 1.

    Args:
        encoder: In evaluation mode. Tokens beside those of the cells come first.
        crop: A normalised crop, shape (3, S, S).
        bbox: The original box in the crop frame, (4,); it meets the crop.
        layers: Numbers from 1.

    Returns:
        Layer → float32, shape (h, h), on the CPU.

    Raises:
        ValueError: Unsupported encoder, unknown layer, or a layer that does not attend over the
            whole crop.
    """
    modules = attention_modules(encoder)
    chosen = {layer: modules[layer - 1] for layer in check_layers(layers, len(modules))}
    with capture_qkv(chosen) as captured:
        encoder(crop[None])
    maps = {}
    for layer, module in chosen.items():
        qkv = captured[layer]
        side = math.isqrt(qkv.shape[1])  # a crop is square, and the other tokens are few
        extra = qkv.shape[1] - side**2
        if len(qkv) != 1:
            raise ValueError(f"layer {layer} attends within windows, not over the whole crop")
        query, key, _ = qkv[0].unflatten(-1, (3, module.num_heads, -1)).permute(1, 2, 0, 3)
        cells = bbox.to(qkv.device, torch.float32)[None] * (side / crop.shape[-1])
        inside = F.pad(box_masks(cells, (side, side)).flatten(), (extra, 0))
        received = attention_received(query, key, inside)
        maps[layer] = received[extra:].view(side, side).cpu()
    return maps


def draw_attention(
    maps: Mapping[int, Tensor], image: np.ndarray, bbox: np.ndarray
) -> list[np.ndarray]:
    """Panels of a crop with its box, and of each layer's map over it, scaled to its range.

    Args:
        maps: As :func:`attention_maps` returns them.
        image: The crop, uint8 RGB, shape (S, S, 3).
        bbox: The original box, (4,), in pixels of ``image``.

    Returns:
        uint8 RGB, shape (S, S, 3) each.
    """
    visualizer = DetLocalVisualizer()
    panels = [draw_panel(visualizer, image, bbox=bbox)]
    for layer, attention in maps.items():
        heat = F.interpolate(attention[None, None], image.shape[:2], mode="bilinear")[0]
        overlay = visualizer.draw_featmap(heat, overlaid_image=image)
        panels.append(draw_panel(visualizer, overlay, bbox=bbox, text=f"layer {layer}"))
    return panels
