# SPDX-License-Identifier: Apache-2.0
from .conv_stem_vit import ConvStemVisionTransformer

__all__ = ["ConvStemVisionTransformer"]
