# SPDX-License-Identifier: Apache-2.0
"""Mean field of the CRF loss: pixels of like colour pull their neighbours to one label.

Letters: B crops, (h, w) mask resolution, k kernel size, j the offset of a neighbour.

The method states one step for both labels c: ``a_c = t_c · exp(Σ_j K_ij log x_c,j)``, then
``x = a_1 / (a_0 + a_1)``. In log-odds ``λ = log(x / (1 − x))`` both sums collapse into one,
``λ_i ← Σ_j K_ij λ_j + log t_i``, a single-channel stencil; clamping x to [0.1, 0.9] is clamping
λ to ±log 9. The 1e-6 that the original adds to the denominator is left out. With the method's
ω and k it only moves near-ties to the background; with stronger weights, where ``a_0 + a_1`` is far
below it, it would make nearly everything background.

On a CPU compiled code takes one crop after the other through all steps, each in a core's cache;
NVIDIA GPUs have a kernel that keeps crops in registers; where neither works, a step of all crops is
a few of PyTorch's operations.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable

import torch
from mmengine.logging import print_log
from torch import Tensor

from .mean_field_numba import compiled_mean_field
from .mean_field_torch import check_kernel_size, torch_mean_field


@torch.compiler.disable  # compiled by other means, or in place on vectors
@torch.no_grad()
def mean_field(
    probs: Tensor,
    box_masks: Tensor,
    images: Tensor,
    zeta: float = 0.1,
    omega: float = 1.0,
    kernel_size: int = 3,
    num_steps: int = 100,
) -> Tensor:
    """Refines probabilities into hard masks that follow the image's edges (paper, Sec. 3.4).

    Args:
        probs: Starting point q, shape (B, h, w), in [0, 1]. Half precision is computed in float32.
        box_masks: t, shape (B, h, w), in [0, 1]; outside the box nothing is foreground.
        images: Normalised images at mask resolution, shape (B, C, h, w).
        zeta, omega, kernel_size: See :func:`pairwise_weights`.
        num_steps: Number of steps; iteration ends earlier only at an exact fixed point.

    Returns:
        Bool masks l of shape (B, h, w).

    Raises:
        ValueError: ``kernel_size`` is even or 1, or the maps are not of the same crops and size.
    """
    check_kernel_size(kernel_size)
    if not probs.shape == box_masks.shape == images[:, 0].shape:
        raise ValueError(
            f"probs {tuple(probs.shape)}, box_masks {tuple(box_masks.shape)} and images "
            f"{tuple(images.shape)} do not fit: give (B, h, w), (B, h, w) and (B, C, h, w)"
        )
    dtype = torch.promote_types(probs.dtype, torch.float32)
    probs, box_masks, images = (maps.to(dtype) for maps in (probs, box_masks, images))
    kernel = gpu_kernel(probs, kernel_size) or (
        compiled_mean_field if probs.device.type == "cpu" else torch_mean_field
    )
    return kernel(probs, box_masks, images, zeta, omega, kernel_size, num_steps)


def gpu_kernel(probs: Tensor, kernel_size: int) -> Callable[..., Tensor] | None:
    """``triton_mean_field`` for maps on an NVIDIA GPU on which Triton works and that is no toy.

    The programs of a crop wait for each other, so all of them have to be at work at once, also
    beside another such kernel.
    """
    if probs.device.type != "cuda" or torch.version.hip or not triton_works(probs.device):
        return None
    from .mean_field_triton import num_blocks, triton_mean_field

    processors = torch.cuda.get_device_properties(probs.device).multi_processor_count
    return triton_mean_field if 2 * num_blocks(probs, kernel_size) <= processors else None


@functools.cache
def triton_works(device: torch.device) -> bool:
    """Whether a kernel can be compiled and run there; warns if not."""
    try:
        from .mean_field_triton import triton_mean_field

        images = torch.zeros(1, 3, 4, 4, device=device)
        # Compiles, which needs a C compiler, and waits for the kernel.
        triton_mean_field(images[:, 0], images[:, 0], images, 0.1, 1.0, 3, 1).any().item()
    except torch.OutOfMemoryError:  # says nothing about Triton
        raise
    except Exception as error:  # Triton's, the compiler's or the driver's
        print_log(
            f"The mean field runs in PyTorch's operations, which is slow: Triton does not work on "
            f"{device} ({type(error).__name__}: {error}). It needs a C compiler and the headers of "
            "Python.",
            logger="current",
            level=logging.WARNING,
        )
        return False
    return True
