# SPDX-License-Identifier: Apache-2.0
"""The MAL checkpoints that others publish, read safely and renamed for :class:`MaskNetwork`."""

from __future__ import annotations

import pickle
import re
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch
import torch.nn.functional as F
from mmdet.registry import MODELS
from torch import Tensor

from .pretrained_encoder import rename_vit_key

NETWORKS = ("student.", "teacher.")
ARCHS = {384: "deit-small", 768: "base", 1024: "large", 1280: "huge"}  # by the encoder's width
CONV_STEM, PATCHES = "conv-stem", "patch projection"
HEAD_RENAMES = (
    (r"^roi_head\.mlp1\.", "decoder.instance_head.0."),
    (r"^roi_head\.mlp2\.", "decoder.instance_head.2."),
    (r"^mask_head\.convs\.(\d+)\.conv\.", r"decoder.pixel_head.\1.conv."),
)
STEM_STRIDE = 16
# All that a file of tensors needs; anything else in it becomes a Skipped.
ALLOWED = {
    ("collections", "OrderedDict"): OrderedDict,
    ("torch._utils", "_rebuild_tensor_v2"): torch._utils._rebuild_tensor_v2,
    ("torch._utils", "_rebuild_parameter"): torch._utils._rebuild_parameter,
    ("torch", "Size"): torch.Size,
}


class Skipped:
    """Stands for an object that is not a tensor; takes any content and does nothing."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def _ignore(self, *args: Any, **kwargs: Any) -> Skipped:
        return self

    __call__ = __setitem__ = __setstate__ = append = extend = add = update = _ignore


class TensorUnpickler(pickle.Unpickler):
    """Restores tensors and plain containers; imports and calls nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        return ALLOWED.get((module, name), Skipped)


def load_tensors(path: str | Path) -> Any:
    """Reads a torch checkpoint without running code that it may carry.

    Objects other than tensors, numbers, texts and containers become :class:`Skipped`.

    Raises:
        FileNotFoundError: No such file.
        ValueError: Not a torch checkpoint.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"checkpoint {path} does not exist")

    def refuse(*args: Any, **kwargs: Any) -> None:
        raise ValueError(f"{path} is a TorchScript program, expected a checkpoint")

    module = SimpleNamespace(
        __name__="TensorUnpickler",
        Unpickler=TensorUnpickler,
        load=lambda file, **kwargs: TensorUnpickler(file, **kwargs).load(),
    )
    try:
        # torch.load hands TorchScript to torch.jit, which would run the code in it.
        with patch.object(torch.jit, "load", refuse):
            return torch.load(path, map_location="cpu", pickle_module=module, weights_only=False)
    except (RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise ValueError(f"{path} is not a torch checkpoint: {error}") from error


def convert_released(checkpoint: Mapping, crop_size: int) -> tuple[dict[str, Tensor], dict]:
    """Renames a published MAL checkpoint for :class:`MaskAutoLabeler`.

    Two layouts are known, told apart by their keys: the authors' with a convolutional stem (also
    in NVIDIA TAO up to 6.0), and TAO's since 6.25.7 with the usual patch projection and an unused
    classifier, which is dropped. The position embedding is resized here once, as the publisher's
    network does at run time, and so fixes the crop size.

    Args:
        checkpoint: Content of the file, see :func:`load_tensors`.
        crop_size: Side S of the crops that the converted network will see, in pixels, a multiple
            of the patch (16 for the stem).

    Returns:
        The state dict with ``student.`` and ``teacher.``, float32, and a description with
        ``layout``, ``arch`` (of the ViT), ``patch_size`` and ``crop_size``.

    Raises:
        ValueError: Encrypted, another layout (lists the unexpected and missing keys), or a crop
            size that the patch does not divide.
    """
    state = checkpoint.get("state_dict") if isinstance(checkpoint, Mapping) else None
    if isinstance(state, bytes) or (state and checkpoint.get("state_dict_encrypted")):
        raise ValueError(
            "the checkpoint is encrypted; export it from TAO without an encryption key first"
        )
    if not isinstance(state, Mapping):
        raise ValueError("the file has no 'state_dict', so it is no checkpoint of a training")
    stem = any(re.search(r"patch_embed\.proj\.\d+\.", key) for key in state)
    layout = CONV_STEM if stem else PATCHES
    converted = {_rename(key): value for key, value in state.items() if not _dropped(key, layout)}
    width = next((v.shape[-1] for k, v in converted.items() if k.endswith("cls_token")), None)
    if width not in ARCHS:
        raise ValueError(
            f"the encoder's width is {width}, but known are {', '.join(map(str, ARCHS))}; the "
            f"file's keys are such as {', '.join(list(state)[:5])}"
        )
    projection = converted.get("student.backbone.patch_embed.projection.weight")
    patch_size = STEM_STRIDE if projection is None else projection.shape[-1]
    if crop_size % patch_size or crop_size <= 0:
        raise ValueError(
            f"crop size is {crop_size}, but must be a positive multiple of {patch_size}"
        )
    found = dict(layout=layout, arch=ARCHS[width], patch_size=patch_size, crop_size=crop_size)
    expected = _expected_keys(**found)
    unexpected, missing = set(converted) - expected, expected - set(converted)
    if unexpected or missing:
        raise ValueError(
            f"the file looks like the {layout} layout, but has unexpected keys "
            f"{sorted(unexpected)} and lacks {sorted(missing)}"
        )
    converted = {key: value.float() for key, value in converted.items()}
    for network in NETWORKS:
        key = f"{network}backbone.pos_embed"
        converted[key] = resize_positions(converted[key], crop_size // patch_size, layout)
    return converted, found


def resize_positions(pos_embed: Tensor, cells: int, layout: str) -> Tensor:
    """Position embedding on another token grid, the way the layout's publisher resizes it.

    Args:
        pos_embed: Class token and g × g grid, shape (1, 1 + g², C).
        cells: Side n of the wanted grid.
        layout: The authors pass the factor (n + 0.1) / g, which samples slightly off the usual
            places; TAO passes the size and antialiases. Bicubic both.

    Returns:
        Shape (1, 1 + n², C).
    """
    token, positions = pos_embed[:, :1], pos_embed[:, 1:]
    side = round(positions.shape[1] ** 0.5)
    if side == cells:
        return pos_embed
    grid = positions.unflatten(1, (side, side)).permute(0, 3, 1, 2)
    if layout == CONV_STEM:
        factor = (cells + 0.1) / side
        grid = F.interpolate(grid, scale_factor=factor, mode="bicubic", align_corners=False)
    else:
        grid = F.interpolate(grid, (cells, cells), mode="bicubic", antialias=True)
    return torch.cat([token, grid.flatten(2).transpose(1, 2)], 1)


def network_config(layout: str, arch: str, patch_size: int, crop_size: int) -> dict:
    """Config of the :class:`MaskNetwork` that a converted checkpoint fits."""
    backbone = dict(arch=arch, img_size=crop_size, out_type="featmap")
    if layout == CONV_STEM:
        backbone.update(type="ConvStemVisionTransformer")
    else:
        backbone.update(type="mmpretrain.VisionTransformer", patch_size=patch_size)
    width = {name: width for width, name in ARCHS.items()}[arch]
    decoder = dict(type="AttentionDecoder", in_channels=width)
    return dict(type="MaskNetwork", backbone=backbone, decoder=decoder)


def _expected_keys(**found: Any) -> set[str]:
    with torch.device("meta"):  # names only, no memory
        network = MODELS.build(network_config(**found))
    return {prefix + key for prefix in NETWORKS for key in network.state_dict()}


def _dropped(key: str, layout: str) -> bool:
    return layout == PATCHES and re.match(r"(student|teacher)\.backbone\.head\.", key) is not None


def _rename(key: str) -> str:
    network, _, rest = key.partition(".")
    for pattern, replacement in HEAD_RENAMES:
        rest = re.sub(pattern, replacement, rest)
    if rest.startswith("backbone."):
        rest = "backbone." + rename_vit_key(rest.removeprefix("backbone."))
    return f"{network}.{rest}"
