# SPDX-License-Identifier: Apache-2.0
from .attention_decoder import AttentionDecoder
from .fully_connected_decoder import FullyConnectedDecoder
from .fully_convolutional_decoder import FullyConvolutionalDecoder
from .query_decoder import QueryDecoder

__all__ = [
    "AttentionDecoder",
    "FullyConnectedDecoder",
    "FullyConvolutionalDecoder",
    "QueryDecoder",
]
