"""`ttlora merge`: the base model with an adapter's update added."""

from __future__ import annotations

import json as json_format
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ttlora.cli.plan import format_size
from ttlora.errors import UserError

if TYPE_CHECKING:
    from ttlora.adapters.read import Adapter


def merge(adapter: str, *, output: str, model: str | None = None, json: bool = False) -> None:
    """Write the base model with the adapter's update added to its weights: a model that needs transformers alone.

    Takes adapters of TT-LoRA, LoRA and every other method of PEFT that can be merged. A head that was trained with the
    adapter goes along, and the tokenizer too: the one beside the adapter, or else the base's.

    Args:
        adapter: A folder with a saved PEFT adapter, or the output folder of ttlora train.
        output: Folder for the model; empty or not there yet.
        model: Where the base model is now, if it is not where the adapter says.
        json: Print one JSON object.

    Raises:
        UserError: There is no adapter, or none that can be merged, or the model is another one, or the output is in
            use.
    """
    from ttlora.adapters.companions import copy_processors
    from ttlora.adapters.merge import merge_adapter
    from ttlora.adapters.read import MODEL_PREFIX, read_adapter
    from ttlora.whole_files import require_free, whole_folder

    path = require_free(output)
    content = read_adapter(adapter)
    name = content.config.base_model_name_or_path if model is None else model
    if not name:
        raise UserError(f"{content.folder} does not name its base model: give it with --model")
    options = {"revision": content.config.revision if model is None else None}
    base, tokenizer = _load(content, name, options)
    merged = merge_adapter(content, base)
    with whole_folder(path, last="config.json") as folder:
        merged.save_pretrained(folder)
        if tokenizer is not None:
            tokenizer.save_pretrained(folder)
        copy_processors(content, name, folder, **options)
    if tokenizer is None:
        print(f"model {name} comes without a tokenizer, so there is none in {path}", file=sys.stderr)
    size = sum(file.stat().st_size for file in path.glob("*.safetensors"))
    dtype = str(merged.dtype).removeprefix("torch.")
    trained = [key.removeprefix(MODEL_PREFIX) for key in content.others]
    if json:
        summary = {
            "output": str(path),
            "model": name,
            "class": type(merged).__name__,
            "dtype": dtype,
            "bytes": size,
            "merged": list(content.modules),
            "trained": trained,
        }
        print(json_format.dumps(summary, indent=2))
        return
    also = f" and {len(trained)} trained tensors put in their place ({', '.join(trained)})" if trained else ""
    print(f"{type(merged).__name__} with {len(content.modules)} updates added{also}")
    print(f"{path}: {format_size(size)} of {dtype}")


def _load(adapter: Adapter, name: str, options: dict[str, Any]) -> tuple[Any, Any]:
    """Base model and tokenizer; `options` learn whether the hub is to be asked."""
    from huggingface_hub import try_to_load_from_cache

    from ttlora.hub import require_on_hub

    folder = Path(os.path.expanduser(name))
    options["local_files_only"] = True
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise UserError(f"model folder {name} holds no config.json")
        return _load_from(adapter, str(folder), options)
    if folder.exists() or folder.is_absolute() or name.startswith((".", "~")) or name.count("/") > 1:
        raise UserError(f"model folder {name} is not there: give its place with --model")
    try:
        return _load_from(adapter, name, options)
    except UserError as refusal:
        try:
            require_on_hub("model", name, "give a local folder as --model")
        except UserError:
            if isinstance(try_to_load_from_cache(name, "config.json", revision=options["revision"]), str):
                raise refusal from None
            raise
        options["local_files_only"] = False
        return _load_from(adapter, name, options)


def _load_from(adapter: Adapter, name: str, options: dict[str, Any]) -> tuple[Any, Any]:
    from ttlora.adapters.base_model import load_base
    from ttlora.adapters.companions import fit_generation, fit_to_tokenizer, load_tokenizer
    from ttlora.finetune.base import fit_to_task
    from ttlora.finetune.folder import RunFolder

    tokenizer = load_tokenizer(adapter, name, **options)
    run = RunFolder(adapter.folder.parent)
    is_run = adapter.folder.name == run.adapter.name and (run.adapter / "task.json").is_file()
    task = run.read_task() if is_run else None
    if task is not None and tokenizer is None:
        raise UserError(f"model {name} comes without the files of its tokenizer")
    fit = None if task is None else lambda config: fit_to_task(config, tokenizer, task)
    model, random = load_base(adapter, name, fit, **options)
    if random:
        print(f"neither model {name} nor the adapter holds {', '.join(random)}: random", file=sys.stderr)
    fit_to_tokenizer(adapter, model, tokenizer)
    fit_generation(adapter, model)
    return model, tokenizer
