# SPDX-License-Identifier: Apache-2.0
from .color_model import color_log_odds
from .crf_loss import CRFLoss
from .mean_field import mean_field
from .mean_field_torch import pairwise_weights
from .mil_loss import MILLoss

__all__ = ["CRFLoss", "MILLoss", "color_log_odds", "mean_field", "pairwise_weights"]
