"""The tensor-train algebra: shapes, trains, the updates they stand for, their starts. Knows nothing but torch."""

from ttlora.tensor_train.shape import TTShape, aligned_dims
from ttlora.tensor_train.train import TensorTrain
from ttlora.tensor_train.update import Update, even_core_size

__all__ = ["TTShape", "TensorTrain", "Update", "aligned_dims", "even_core_size"]
