# SPDX-License-Identifier: Apache-2.0
"""Compiles the mean field when it is imported, for processes that are forked from one that did."""

import torch

from mal_mmdet.models.losses import mean_field

torch.set_num_threads(1)  # a process with threads should not be forked
mean_field(torch.rand(1, 8, 8), torch.ones(1, 8, 8), torch.rand(1, 3, 8, 8), 0.1, num_steps=2)
