"""`ttlora merge`: the base model with an adapter's update added."""

import json as json_format
import os
import sys
from pathlib import Path

from ttlora.cli.plan import format_size


def merge(adapter: str, *, output: str, model: str | None = None, json: bool = False) -> None:
    """Write the base model with the adapter's update added to its weights: a model that needs only transformers.

    Takes adapters of TT-LoRA, LoRA and every other method of PEFT that can be merged. A head that was trained with the
    adapter goes along, and the tokenizer too: the one beside the adapter, or else the base's.

    Args:
        adapter: A folder with a saved PEFT adapter, or the output folder of ttlora train.
        output: Folder for the model; empty or not there yet.
        model: Where the base model is now, if it is not where the adapter says.
        json: Print one JSON object.
    """
    from ttlora.finetune.merge import merge as write_merged

    merged = write_merged(adapter, output, model)
    for note in merged.notes:
        print(note, file=sys.stderr)
    path = Path(os.path.expanduser(output))
    size = sum(file.stat().st_size for file in path.glob("*.safetensors"))
    dtype = str(merged.model.dtype).removeprefix("torch.")
    class_name = type(merged.model).__name__
    if json:
        summary = {
            "output": str(path),
            "model": merged.base_model,
            "class": class_name,
            "dtype": dtype,
            "bytes": size,
            "merged": merged.modules,
            "trained": merged.trained,
        }
        print(json_format.dumps(summary, indent=2))
        return
    trained = merged.trained
    also = f" and {len(trained)} trained tensors put in their place ({', '.join(trained)})" if trained else ""
    print(f"{class_name} with {len(merged.modules)} updates added{also}")
    print(f"{path}: {format_size(size)} of {dtype}")
