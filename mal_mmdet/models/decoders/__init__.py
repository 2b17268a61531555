# SPDX-License-Identifier: Apache-2.0
from .attention_decoder import AttentionDecoder

__all__ = ["AttentionDecoder"]
