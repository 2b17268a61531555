# SPDX-License-Identifier: Apache-2.0
"""Training with weights, gradients and the optimizer's state sharded over the processes."""

from __future__ import annotations

from typing import Any

from mmengine._strategy import FSDPStrategy
from mmengine.device import get_device
from mmengine.dist import is_main_process
from mmengine.registry import FUNCTIONS, STRATEGIES
from mmpretrain.models.backbones.vision_transformer import TransformerEncoderLayer
from torch import nn
from torch.distributed.fsdp import FullyShardedDataParallel

from mal_mmdet.models import MaskNetwork

from .safe_checkpoint_hook import whole_checkpoint


@STRATEGIES.register_module()
class ResumableFSDPStrategy(FSDPStrategy):
    """MMEngine's FSDP, able to resume with today's PyTorch and to run without a GPU.

    Its checkpoints are those of a training without FSDP, gathered on the main process, and appear
    under their name when they are whole.

    Args:
        model_wrapper: Config of the wrapper, as MMEngine's.
        kwargs: As MMEngine's, without ``state_dict_cfg``.

    Raises:
        ValueError: There is one. A file for each rank is nothing that labeling, or another number
            of ranks, could load, and its tensors need a pickle that :func:`load_safely` refuses.
    """

    def __init__(self, *, model_wrapper: dict | None = None, **kwargs: Any) -> None:
        if "state_dict_cfg" in kwargs:
            raise ValueError(
                f"state_dict_cfg is {kwargs['state_dict_cfg']!r}: checkpoints are always whole "
                "('full') here; remove it from the strategy"
            )
        without_gpu = get_device() == "cpu"
        if without_gpu:
            model_wrapper = dict(model_wrapper or {}, device_id="cpu")
        super().__init__(model_wrapper=model_wrapper, state_dict_cfg="full", **kwargs)
        if without_gpu:
            # PyTorch would free the tensors that it moves to where they already are, and crash.
            self.state_dict_config.offload_to_cpu = False
            self.optim_state_dict_config.offload_to_cpu = False

    def save_checkpoint(self, filename: str, **kwargs: Any) -> None:
        """Saves under a temporary name and renames, on the main process.

        Args:
            filename: Checkpoint.
            kwargs: As MMEngine's.
        """
        if is_main_process():
            with whole_checkpoint(filename) as temporary:
                super().save_checkpoint(temporary, **kwargs)
        else:  # has its part in gathering the weights
            super().save_checkpoint(filename, **kwargs)

    def load_optim_state_dict(self, state_dict: dict) -> None:
        """Loads what ``optim_state_dict`` gave; the parent's arguments are in PyTorch 2.0's order.

        Args:
            state_dict: Of the optimizer, by names of parameters.
        """
        self.optim_wrapper.load_state_dict(
            FullyShardedDataParallel.optim_state_dict_to_load(
                model=self.model,
                optim=self.optim_wrapper.optimizer,
                optim_state_dict=state_dict,
            )
        )


@FUNCTIONS.register_module()
def is_vit_layer(module: nn.Module) -> bool:
    """Whether a module is a layer of mmpretrain's ViT; for ``check_fn``."""
    return isinstance(module, TransformerEncoderLayer)


@FUNCTIONS.register_module()
def shard_networks_by_layer(module: nn.Module, recurse: bool, nonwrapped_numel: int) -> bool:
    """Makes each layer of a ViT, and what remains of student and of teacher, a unit of FSDP.

    Were the rest of both networks one unit, a rank would hold other parameters of the student than
    of the teacher, which then could not follow. For ``auto_wrap_policy``.

    Args:
        module: A part of the model.
        recurse: Whether FSDP asks if it should look into the module.
        nonwrapped_numel: Number of its parameters that are in no unit yet; does not matter here.
    """
    return recurse or isinstance(module, MaskNetwork) or is_vit_layer(module)
