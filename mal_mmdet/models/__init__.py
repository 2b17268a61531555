# SPDX-License-Identifier: Apache-2.0
from .data_preprocessor import CropDataPreprocessor
from .decoders import (
    AttentionDecoder,
    FullyConnectedDecoder,
    FullyConvolutionalDecoder,
    QueryDecoder,
)
from .losses import CRFLoss, MILLoss
from .mask_auto_labeler import MaskAutoLabeler
from .mask_network import MaskNetwork

__all__ = [
    "AttentionDecoder",
    "CRFLoss",
    "CropDataPreprocessor",
    "FullyConnectedDecoder",
    "FullyConvolutionalDecoder",
    "MILLoss",
    "MaskAutoLabeler",
    "MaskNetwork",
    "QueryDecoder",
]
