# SPDX-License-Identifier: Apache-2.0
from .backbones import ConvStemVisionTransformer
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
from .pretrained_encoder import PretrainedEncoder, load_encoder
from .quality_mask_head import QualityMaskHead

__all__ = [
    "AttentionDecoder",
    "CRFLoss",
    "ConvStemVisionTransformer",
    "CropDataPreprocessor",
    "FullyConnectedDecoder",
    "FullyConvolutionalDecoder",
    "MILLoss",
    "MaskAutoLabeler",
    "MaskNetwork",
    "PretrainedEncoder",
    "QualityMaskHead",
    "QueryDecoder",
    "load_encoder",
]
