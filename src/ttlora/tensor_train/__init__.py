"""The tensor-train algebra: shapes, trains, their factors and starting points. Knows nothing but torch."""

from ttlora.tensor_train.shape import TTShape
from ttlora.tensor_train.train import TensorTrain

__all__ = ["TTShape", "TensorTrain"]
