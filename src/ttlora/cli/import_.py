"""`ttlora import`: a plain LoRA adapter as a TT-LoRA adapter."""

from typing import Literal

from ttlora.cli.changes import print_changes


def import_(
    lora: str,
    *,
    output: str,
    shape: str = "auto",
    r: int | None = None,
    tolerance: float | None = None,
    dtype: Literal["float32", "bfloat16", "float16"] = "float32",
    json: bool = False,
) -> None:
    """Write a LoRA adapter as a TT-LoRA adapter, and tell how far each update is from the one before.

    Without r and tolerance the updates stay the same. A trained LoRA holds more than a small train can, so the exact
    train is no smaller than it. With r or tolerance the train is smaller, and near the LoRA or not: read the error.

    Args:
        lora: A folder with a saved LoRA adapter of PEFT.
        output: Folder for the TT-LoRA adapter; empty or not there yet.
        shape: Dims of the tensor trains, such as 16,16,16,16,16,16, or by module, such as "q_proj=64,64,64,64
            v_proj=16,64,64,64", or auto.
        r: Largest TT-rank.
        tolerance: Largest relative error of each update, such as 0.1.
        dtype: Number format of the cores; errors are told with its rounding.
        json: Print one JSON object.

    Raises:
        UserError: There is no such adapter, or it is a variant of LoRA that cannot be imported, or the output is in
            use.
    """
    from ttlora.adapters.convert import import_lora

    print_changes(import_lora(lora, output, shape, r, tolerance, dtype), output, json)
