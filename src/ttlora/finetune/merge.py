"""Merge an adapter into its base model, with what the adapter's run knows of its task, if a run has made it."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ttlora.adapters.base_model import load_base_of
from ttlora.adapters.card import CARD, base_name, model_card
from ttlora.adapters.companions import copy_processors, fit_generation, fit_to_tokenizer, load_tokenizer
from ttlora.adapters.merge import merge_adapter
from ttlora.adapters.read import MODEL_PREFIX, Adapter, read_adapter
from ttlora.errors import UserError
from ttlora.finetune.base import fit_to_task
from ttlora.finetune.folder import RunFolder
from ttlora.models.hub import from_folder_or_hub
from ttlora.whole_files import require_free, whole_folder


@dataclass(frozen=True)
class Merged:
    """A base model with an adapter's update in its weights, as it was written.

    Attributes:
        model: The model.
        base_model: The base model: a local folder, or a name on the hub.
        modules: The modules whose weights have an update.
        trained: The tensors that were trained beside the updates and took the place of the base's, such as a head.
        notes: What the user may not expect of the written model.
    """

    model: Any
    base_model: str
    modules: tuple[str, ...]
    trained: tuple[str, ...]
    notes: tuple[str, ...]


def merge(adapter: str | Path, output: str | Path, model: str | Path | None = None) -> Merged:
    """Write the base model with the adapter's update added to its weights: a model that needs only transformers.

    Takes adapters of TT-LoRA, LoRA and every other method of PEFT that can be merged. A head that was trained with the
    adapter goes along, and the tokenizer too: the one beside the adapter, or else the base's.

    Args:
        adapter: A folder with a saved PEFT adapter, or the output folder of `train`.
        output: Folder for the model; empty or not there yet.
        model: Where the base model is now; None: where the adapter says.

    Returns:
        What was written.

    Raises:
        UserError: There is no adapter, or none that can be merged, or the model is another one, or the output is in
            use.

    Examples:
        >>> import ttlora
        >>> merged = ttlora.merge("run", "run-merged")
        >>> type(merged.model).__name__
        'BertForSequenceClassification'
    """
    path = require_free(output)
    content = read_adapter(adapter)
    name = content.config.base_model_name_or_path if model is None else str(model)
    if not name:
        raise UserError(f"{content.folder} does not name its base model: give it as `model`")
    revision = content.config.revision if model is None else None

    def load(source: str, **options: Any) -> tuple[Any, Any, list[str], dict[str, Any]]:
        options = {"revision": revision, **options}
        return *_load(content, source, options), options

    base, tokenizer, random, options = from_folder_or_hub(name, load, revision=revision)
    merged = merge_adapter(content, base)
    with whole_folder(path, last="config.json") as folder:
        merged.save_pretrained(folder)
        if tokenizer is not None:
            tokenizer.save_pretrained(folder)
        copy_processors(content, name, folder, **options)
        kind = content.config.peft_type.value
        how = (
            f"The base model with the update of an adapter ({kind}) added to its weights; transformers alone loads it."
        )
        card = model_card(f"{base_name(name)} with an adapter", name, ["ttlora"], [how], of_peft=False)
        (folder / CARD).write_text(card, "utf-8")
    notes = []
    if random:
        notes.append(f"neither model {name} nor the adapter holds {', '.join(random)}: random")
    if tokenizer is None:
        notes.append(f"model {name} comes without a tokenizer, so there is none in {path}")
    trained = tuple(key.removeprefix(MODEL_PREFIX) for key in content.others)
    return Merged(merged, name, tuple(content.modules), trained, tuple(notes))


def _load(adapter: Adapter, name: str, options: dict[str, Any]) -> tuple[Any, Any, list[str]]:
    """Base model, tokenizer, and the names of the weights that neither the model nor the adapter holds."""
    tokenizer = load_tokenizer(adapter, name, **options)
    run = RunFolder(adapter.folder.parent)
    is_run = adapter.folder.name == run.adapter.name and (run.adapter / "task.json").is_file()
    task = run.read_task() if is_run else None
    if task is not None and tokenizer is None:
        raise UserError(f"model {name} comes without the files of its tokenizer")
    fit = None if task is None else lambda config: fit_to_task(config, tokenizer, task)
    model, random = load_base_of(adapter, name, fit, **options)
    fit_to_tokenizer(adapter, model, tokenizer)
    fit_generation(adapter, model)
    return model, tokenizer, random
