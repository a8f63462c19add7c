"""The header of a safetensors file: names, sizes and formats of its tensors, read before any of them."""

import math
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open

from ttlora.errors import UserError, one_line, printable

FLOATING = ("F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2")
OTHERS = ("I64", "I32", "I16", "I8", "U64", "U32", "U16", "U8", "BOOL", "C64")


@dataclass(frozen=True)
class TensorInfo:
    """What the header of a safetensors file says of a tensor.

    Attributes:
        dtype: The file format's name for it, such as `BF16`.
        shape: Its sizes.
    """

    dtype: str
    shape: tuple[int, ...]

    @property
    def parameters(self) -> int:
        """The number of its entries."""
        return math.prod(self.shape)

    @property
    def is_floating(self) -> bool:
        """Whether its entries are floating-point numbers."""
        return self.dtype in FLOATING


def read_header(file: Path) -> dict[str, TensorInfo]:
    """The tensors of a safetensors file; the library itself holds sizes and offsets against the file's length.

    Raises:
        UserError: The file is not there or damaged, or a name or format in it is none of an adapter.
    """
    if file.exists() and not file.is_file():
        raise UserError(f"{file} is no file")
    if not file.is_file():
        pickle = file.with_suffix(".bin")
        hint = f"; {pickle.name} is a pickle, which can run code and is not read" if pickle.exists() else ""
        raise UserError(f"{file} is not there: {file.parent} is no whole adapter folder{hint}")
    try:
        with safe_open(file, framework="pt") as content:
            slices = {key: content.get_slice(key) for key in content.keys()}  # noqa: SIM118, the file is no mapping
            infos = {key: TensorInfo(part.get_dtype(), tuple(part.get_shape())) for key, part in slices.items()}
    except (SafetensorError, OSError) as error:
        raise UserError(
            f"{file} is damaged or cut short ({one_line(error)}): restore it from a copy, or train again"
        ) from error
    # a terminal obeys control characters, and keys are shown
    if unprintable := [key for key in infos if not key.isprintable()]:
        raise UserError(f"{file} names a tensor {printable(repr(unprintable[0]), 200)}, which is no name of a module")
    for key, info in infos.items():
        if info.dtype not in FLOATING + OTHERS:
            raise UserError(f"{file} holds '{printable(key)}' in the format {info.dtype}, which is none of adapters")
    return infos
