"""Files of trained weights: written in the number format asked for, and checked before they are read."""

from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from ttlora.adapters.header import read_header
from ttlora.adapters.read import MODEL_PREFIX
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
    require_fit(f"{file} does not fit model {model}", shapes, wanted)
    return load_file(file)


def require_fit(
    refusal: str,
    shapes: Mapping[str, Sequence[int]],
    wanted: Mapping[str, torch.Tensor],
    spare: Callable[[], Collection[str]] = tuple,
) -> None:
    """Refuse weights that are not those that a model needs.

    Args:
        refusal: What is wrong, as the message begins.
        shapes: The sizes of the weights that are there, by name.
        wanted: The tensors of the model that they are for.
        spare: Names that may be there without use; asked for only if there are more weights than are wanted.

    Raises:
        UserError: A weight is missing, has other sizes, or has no place in the model.
    """
    for key, tensor in wanted.items():
        name = key.removeprefix(MODEL_PREFIX)
        if key not in shapes:
            raise UserError(f"{refusal}: it has no {name}, which the model needs")
        if tuple(shapes[key]) != tuple(tensor.shape):
            raise UserError(f"{refusal}: {name} is {_sizes(shapes[key])} in it and {_sizes(tensor.shape)} in the model")
    if extra := shapes.keys() - wanted.keys():
        extra -= set(spare())
    if extra:
        raise UserError(f"{refusal}: the model has no {min(extra).removeprefix(MODEL_PREFIX)}")


def _sizes(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape)) or "a single number"
