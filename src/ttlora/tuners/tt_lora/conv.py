"""Convolutions whose weight is updated by tensor trains."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from ttlora.compat import convolve_as
from ttlora.tuners.tt_lora.layer import TTLoraLayer

CONVOLUTIONS: Mapping[int, Callable[..., Tensor]] = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}


class TTLoraConv(TTLoraLayer):
    """``y = (W0 + ΔW) * x + b`` for ``nn.Conv1d``, ``Conv2d`` and ``Conv3d``, with groups or without.

    The matrix ``ΔW`` is the kernel with its last sizes taken together: output channels x (input channels of a group,
    times the kernel's sizes). ``A`` acts as a convolution to ``r`` channels and ``B`` as one of size 1.
    """

    kind = "convolution"

    def _matrix_sizes(self) -> tuple[int, int]:
        channels, *kernel = self.base_parameter.shape
        return channels, math.prod(kernel)

    def _as_stored(self, delta: Float[Tensor, "out in"]) -> Tensor:
        return delta.reshape(self.base_parameter.shape)

    def _as_matrix(self, stored: Tensor) -> Float[Tensor, "out in"]:
        return stored.flatten(1)

    def _update(self, x: Tensor, factors: tuple[Tensor, Tensor], dtype: torch.dtype, dropout: nn.Module) -> Tensor:
        A, B = factors
        base_layer: Any = self.get_base_layer()
        groups, spatial = base_layer.groups, len(base_layer.kernel_size)
        x = dropout(self._cast_input_dtype(x, dtype))
        # all groups share A; each has its own rows of B
        kernel = A.reshape(-1, *base_layer.weight.shape[1:]).repeat(groups, *[1] * (spatial + 1))
        # the base layer's own method knows its stride, padding and dilation
        hidden = convolve_as(base_layer, x, kernel.to(x.dtype))
        convolve = CONVOLUTIONS[spatial]
        return convolve(hidden, B.reshape(*B.shape, *[1] * spatial).to(x.dtype), groups=groups)
