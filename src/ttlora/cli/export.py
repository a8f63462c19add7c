"""`ttlora export`: a TT-LoRA adapter as a plain LoRA adapter."""

import json as json_format
import os
from pathlib import Path
from typing import Literal

from ttlora.cli.plan import format_size

# What vLLM takes without --max-lora-rank, and with it.
VLLM_RANKS = (16, 32, 64, 128, 256, 320, 512)


def export(
    adapter: str,
    *,
    output: str,
    dtype: Literal["float32", "bfloat16", "float16"] = "float32",
    format: Literal["peft", "gguf"] = "peft",
    base: str | None = None,
    json: bool = False,
) -> None:
    """Write a TT-LoRA adapter as a standard LoRA adapter, for vLLM, SGLang, llama.cpp and all else that reads those.

    The update stays exactly the same.

    Args:
        adapter: A folder with a saved TT-LoRA adapter, or the output folder of ttlora train.
        output: Folder for the LoRA adapter, empty or not there yet; with gguf a file, not there yet.
        dtype: Number format of the factors; float32 is exact.
        format: peft for a folder, gguf for a file that llama.cpp's convert_lora_to_gguf.py writes, found in the folder
            that the variable LLAMA_CPP names, or on the PATH.
        base: With gguf, the folder of the base model, of which config.json is read.
        json: Print one JSON object.

    Raises:
        UserError: There is no such adapter, or it holds what cannot go into a LoRA adapter, or the output is in use, or
            there is no converter, or the base model is not the adapter's.
        RunError: The converter failed, or the output cannot be written.
    """
    from ttlora.adapters.export import export as write_lora
    from ttlora.adapters.read import WEIGHTS_NAME

    lora = write_lora(adapter, output, dtype, format, base)
    path = Path(os.path.expanduser(output))
    size = (path / WEIGHTS_NAME if format == "peft" else path).stat().st_size
    if json:
        summary = {
            "output": str(path),
            "base_model": lora.config.base_model_name_or_path,
            "r": lora.config.r,
            "format": format,
            "dtype": dtype,
            "bytes": size,
            "parameters": sum(tensor.numel() for tensor in lora.tensors.values()),
            "modules": [{"name": name, "rank": rank} for name, rank in lora.ranks.items()],
        }
        print(json_format.dumps(summary, indent=2))
        return
    print(f"LoRA of rank {lora.config.r} for {len(lora.ranks)} modules, {format_size(size)} of {dtype}: {path}")
    if format == "peft" and (note := _vllm_note(lora.config.r)):
        print(note)


def _vllm_note(r: int) -> str:
    if r <= VLLM_RANKS[0]:
        return ""
    enough = next((rank for rank in VLLM_RANKS if rank >= r), None)
    if enough is None:
        return f"vLLM takes ranks up to {VLLM_RANKS[-1]}: merge instead, or round the adapter first"
    return f"vLLM needs --max-lora-rank {enough} for it"
