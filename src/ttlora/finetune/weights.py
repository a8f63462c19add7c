"""Files of trained weights: written in the number format asked for, and checked before they are read."""

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from ttlora.adapters.header import read_header
from ttlora.errors import UserError


def cast_weights(source: Path, target: Path, dtype: torch.dtype) -> None:
    """Write `source`'s tensors to `target`, floating-point ones as `dtype`."""
    tensors = load_file(source)
    save_file(
        {name: tensor.to(dtype) if tensor.is_floating_point() else tensor for name, tensor in tensors.items()},
        target,
        metadata={"format": "pt"},
    )


def read_weights(file: Path, model: str, wanted: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Read a file of weights after checking that it is whole and fits.

    Args:
        file: A safetensors file.
        model: Name of the model, for messages.
        wanted: The tensors for which the file has values.

    Raises:
        UserError: The file is not there, is damaged, or belongs to another model.
    """
    shapes = {name: info.shape for name, info in read_header(file).items()}
    for name, tensor in wanted.items():
        if name not in shapes:
            raise UserError(f"{file} does not fit model {model}: it has no {name}, which the model needs")
        if shapes[name] != tuple(tensor.shape):
            raise UserError(
                f"{file} does not fit model {model}: {name} is {_sizes(shapes[name])} in the file and "
                f"{_sizes(tuple(tensor.shape))} in the model"
            )
    if extra := shapes.keys() - wanted.keys():
        raise UserError(f"{file} does not fit model {model}: the model has no {min(extra)}")
    return load_file(file)


def _sizes(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape)) or "a single number"
