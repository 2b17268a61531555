# SPDX-License-Identifier: Apache-2.0
from .crf_loss import CRFLoss
from .dice import dice_distance
from .mean_field import mean_field, pairwise_weights
from .mil_loss import MILLoss

__all__ = ["CRFLoss", "MILLoss", "dice_distance", "mean_field", "pairwise_weights"]
