"""The tensor-train algebra: shapes, trains, their factors and starting points. Knows nothing but torch."""

from ttlora.tensor_train.shape import TTShape

__all__ = ["TTShape"]
