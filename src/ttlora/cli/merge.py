"""`ttlora merge`: the base model with an adapter's update added."""

from __future__ import annotations

import json as json_format
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
    adapter goes along, and the tokenizer too.

    Args:
        adapter: A folder with a saved PEFT adapter, or the output folder of ttlora train.
        output: Folder for the model; empty or not there yet.
        model: Where the base model is now, if it is not where the adapter says.
        json: Print one JSON object.

    Raises:
        UserError: There is no adapter, or none that can be merged, or the model is another one, or the output is in
            use.
    """
    from ttlora.adapters.merge import merge_adapter
    from ttlora.adapters.read import MODEL_PREFIX, read_adapter
    from ttlora.adapters.write import new_folder, require_free

    path = require_free(output)
    content = read_adapter(adapter)
    name = model or content.config.base_model_name_or_path
    if not name:
        raise UserError(f"{content.folder} does not name its base model: give it with --model")
    base, tokenizer = _load(content, name)
    merged = merge_adapter(content, base)
    with new_folder(path) as folder:
        merged.save_pretrained(folder)
        if tokenizer is not None:
            tokenizer.save_pretrained(folder)
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


def _load(adapter: Adapter, name: str) -> tuple[Any, Any]:
    """Base model and tokenizer: of a run of ttlora, with its labels; of another adapter, as PEFT would load it."""
    from ttlora.finetune.base import load_base
    from ttlora.finetune.folder import RunFolder
    from ttlora.hub import require_on_hub

    run = RunFolder(adapter.folder.parent)
    if adapter.folder.name == run.adapter.name and (run.adapter / "task.json").is_file():
        base = load_base(name, run.read_task())
        return base.model, base.tokenizer
    folder = Path(name).expanduser()
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise UserError(f"model folder {name} holds no config.json")
        return _load_plain(adapter, str(folder), local_files_only=True)
    if folder.exists() or folder.is_absolute() or name.startswith((".", "~")) or name.count("/") > 1:
        raise UserError(f"model folder {name} is not there: give its place with --model")
    try:
        return _load_plain(adapter, name, local_files_only=True)
    except UserError:
        require_on_hub("model", name, "give a local folder as --model")
        return _load_plain(adapter, name)


def _load_plain(adapter: Adapter, name: str, local_files_only: bool = False) -> tuple[Any, Any]:
    from ttlora.adapters.merge import load_base

    model, random = load_base(adapter, name, local_files_only)
    if random:
        print(f"neither model {name} nor the adapter holds {', '.join(random)}: random", file=sys.stderr)
    return model, _load_tokenizer(name, local_files_only=local_files_only)


def _load_tokenizer(name: str, **options: Any) -> Any:
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(name, **options)
    except Exception:  # models without text have none, and transformers says so in many ways
        return None
    # without its files, transformers makes up an empty one
    return tokenizer if len(tokenizer.get_vocab()) > len(tokenizer.all_special_tokens) else None
