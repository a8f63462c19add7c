"""Embeddings whose weight is updated by tensor trains."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from ttlora.tuners.tt_lora.layer import TTLoraLayer


class TTLoraEmbedding(TTLoraLayer):
    """``y = c (W0 + ΔWᵀ)[token]``, where ``c`` is the scale that some models put on their embeddings.

    As in LoRA the tokens are the inputs: ``ΔW`` is (embedding size x vocabulary). There is nothing to drop in a token's
    number, so a config's dropout has no effect here. A weight that is tied to another layer's stays tied until the
    update is merged: the adapter changes the embedding alone.
    """

    kind = "embedding"

    def _matrix_sizes(self) -> tuple[int, int]:
        base_layer: Any = self.get_base_layer()
        return base_layer.embedding_dim, base_layer.num_embeddings

    def _as_stored(self, delta: Float[Tensor, "out in"]) -> Tensor:
        return delta.T

    def _update(self, x: Tensor, factors: tuple[Tensor, Tensor], dtype: torch.dtype, dropout: nn.Module) -> Tensor:
        A, B = factors
        base_layer: Any = self.get_base_layer()
        hidden = F.embedding(x, A.T, padding_idx=base_layer.padding_idx)
        update = F.linear(hidden.to(dtype), B.to(dtype))
        scale = self._get_embed_scale()  # type: ignore[no-untyped-call]
        return update if scale is None else update * scale.to(dtype)
