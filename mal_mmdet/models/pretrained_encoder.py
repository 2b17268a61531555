# SPDX-License-Identifier: Apache-2.0
"""Pretrained weights for the encoder, in whatever layout their publisher chose."""

from __future__ import annotations

import logging
import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping

import torch.nn.functional as F
from mmengine.logging import print_log
from mmengine.registry import WEIGHT_INITIALIZERS
from mmengine.runner.checkpoint import CheckpointLoader
from torch import Tensor, nn

from mal_mmdet.checkpoints import guard

# From the key layout that MAE, DeiT, MoCo v3 and timm share to that of mmpretrain's ViT.
VIT_RENAMES = (
    (r"(^|\.)patch_embed\.proj\.", r"\1patch_embed.projection."),
    (r"(^|\.)blocks\.(\d+)\.", r"\1layers.\2."),
    (r"(\.\d+)\.norm([12])\.", r"\1.ln\2."),
    (r"\.mlp\.fc1\.", r".ffn.layers.0.0."),
    (r"\.mlp\.fc2\.", r".ffn.layers.1."),
    (r"(^|\.)norm\.(weight|bias)$", r"\1ln1.\2"),
)


def rename_vit_key(key: str) -> str:
    """A key of the original MAE, DeiT and MoCo v3 layout as mmpretrain names it."""
    for pattern, replacement in VIT_RENAMES:
        key = re.sub(pattern, replacement, key)
    return key


def rename_feature_key(key: str) -> str:
    """A key of a timm model as its feature extractor (``features_only``) names it."""
    return re.sub(r"(^|\.)(stem|stages|layers)\.(\d+)\.", r"\1\2_\3.", key, count=1)


def common_prefix(keys: Iterable[str], wanted: set[str]) -> str:
    """The prefix that makes most of ``wanted`` from ``keys``, such as ``backbone.``."""
    votes: Counter[str] = Counter()
    for key in keys:
        parts = key.split(".")
        for i in range(len(parts)):
            if ".".join(parts[i:]) in wanted:
                votes["".join(f"{part}." for part in parts[:i])] += 1
    return max(votes, key=lambda prefix: (votes[prefix], -len(prefix)), default="")


def match_keys(state_dict: Mapping[str, Tensor], wanted: set[str]) -> dict[str, Tensor]:
    """The tensors of a checkpoint that an encoder has, under the encoder's names.

    Tried are the keys as they are, those of the layout that MAE, DeiT and MoCo v3 share, and
    those of timm, each behind any prefix; what gives the most matches is taken.

    Args:
        state_dict: Tensors of the checkpoint by name.
        wanted: Names of the encoder's tensors.
    """
    best: dict[str, Tensor] = {}
    for rename in (str, rename_vit_key, rename_feature_key):
        renamed = {rename(key): value for key, value in state_dict.items()}
        prefix = common_prefix(renamed, wanted)
        matched = {
            key[len(prefix) :]: value
            for key, value in renamed.items()
            if key.startswith(prefix) and key[len(prefix) :] in wanted
        }
        best = max(best, matched, key=len)
    return best


def with_class_token(pos_embed: Tensor) -> Tensor:
    """Position embedding with a place for the class token: (1, n², C) → (1, 1 + n², C).

    That of DeiT III has none, since there the class token joins after the positions are added;
    a zero does the same. An embedding that has one, (1, 1 + n², C), is returned as it is.
    """
    tokens = pos_embed.shape[1]
    if math.isqrt(tokens) ** 2 != tokens:
        return pos_embed
    return F.pad(pos_embed, (0, 0, 1, 0))


def load_encoder(encoder: nn.Module, checkpoint: str) -> dict[str, Tensor]:
    """Loads what a checkpoint has of an encoder's weights and logs what matched.

    Args:
        encoder: A backbone; what it wraps, if it is ``mmpretrain.TIMMBackbone``.
        checkpoint: File, URL, or ``hf-hub:NAME`` for a model of timm on the Hugging Face hub.

    Returns:
        The tensors that matched.

    Raises:
        ValueError: Nothing in the checkpoint matches, less than half of the encoder's weights
            do, or a tensor has another shape.
    """
    # Behind TIMMBackbone stand the timm model and, with features_only, its feature extractor.
    target = getattr(encoder, "timm_model", encoder)
    target = getattr(target, "model", target)
    content = CheckpointLoader.load_checkpoint(checkpoint, map_location="cpu", logger="silent")
    state_dict = _state_dict(content)
    wanted = set(target.state_dict())
    matched = match_keys(state_dict, wanted)
    name = type(target).__name__
    if not matched:
        raise ValueError(
            f"no weight of {checkpoint} matches the encoder: model.network.backbone is a {name} "
            f"with tensors such as {_few(wanted)}, the file has {_few(state_dict)}. Give the "
            "checkpoint of this architecture, or no model.network.init_cfg to start at random"
        )
    if getattr(target, "with_cls_token", False) and "pos_embed" in matched:
        matched["pos_embed"] = with_class_token(matched["pos_embed"])
    try:
        target.load_state_dict(matched, strict=False)
    except RuntimeError as error:
        raise ValueError(
            f"the weights of {checkpoint} do not fit model.network.backbone, a {name}: {error}"
        ) from error
    # Buffers that follow from the architecture, such as Swin's index tables, need no weights.
    sizes = {key: weight.numel() for key, weight in target.named_parameters()}
    missing = set(sizes) - set(matched)
    share = 1 - sum(sizes[key] for key in missing) / sum(sizes.values())
    if share < 0.5:
        raise ValueError(
            f"{checkpoint} has only {share:.0%} of the weights of model.network.backbone, a "
            f"{name}; it lacks {_few(missing)}. Give the checkpoint of this architecture"
        )
    lines = [f"{len(matched)} of the encoder's {len(wanted)} tensors loaded from {checkpoint}"]
    if missing:
        lines.append(f"{len(missing)} keep their random start: {_few(missing, 20)}")
    unused = len(state_dict) - len(matched)
    if unused:
        lines.append(f"{unused} tensors of the file are not the encoder's and were left out")
    lines.append(f"matched: {', '.join(sorted(matched))}")
    print_log("\n".join(lines), "current", logging.WARNING if missing else logging.INFO)
    return matched


def _state_dict(content: Mapping) -> dict[str, Tensor]:
    for key in ("state_dict", "model"):  # OpenMMLab and MoCo v3; MAE and DeiT
        if isinstance(content.get(key), Mapping):
            content = content[key]
    return {key: value for key, value in content.items() if isinstance(value, Tensor)}


def _few(keys: Iterable[str], number: int = 3) -> str:
    keys = sorted(keys)
    return ", ".join(keys[:number]) + (", …" if len(keys) > number else "")


@WEIGHT_INITIALIZERS.register_module()
class PretrainedEncoder:
    """Initialises the encoder of a :class:`MaskNetwork` from a checkpoint.

    To be used as ``model.network.init_cfg``. Unlike ``Pretrained`` it finds prefix and layout by
    itself, and a file that matches nothing is an error and not a silent random start.

    Args:
        checkpoint: See :func:`load_encoder`.
    """

    def __init__(self, checkpoint: str) -> None:
        self.checkpoint = checkpoint

    def __call__(self, module: nn.Module) -> None:
        # The encoder's own initialisation comes first, and is then not run again over the weights.
        module.backbone.init_weights()
        load_encoder(module.backbone, self.checkpoint)


@CheckpointLoader.register_scheme(prefixes="hf-hub:")
@guard
def load_from_hf(filename: str, map_location: str | None = None) -> dict[str, Tensor]:
    """Loads ``hf-hub:NAME``, a model that timm keeps on the Hugging Face hub."""
    from timm.models import load_state_dict_from_hf

    # timm's own safety has to be off for a checkpoint that is trusted; others are guarded.
    return load_state_dict_from_hf(filename.removeprefix("hf-hub:"), weights_only=False)
