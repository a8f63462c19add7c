"""The files beside a model's weights, such as its tokenizer: those beside the adapter, or else those of the base."""

import shutil
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, GenerationConfig
from transformers.utils import FEATURE_EXTRACTOR_NAME, GENERATION_CONFIG_NAME, PROCESSOR_NAME, VIDEO_PROCESSOR_NAME

from ttlora.adapters.base_model import HOW_TO_SAVE_ROWS, embeddings_of
from ttlora.adapters.read import Adapter
from ttlora.compat import find_file
from ttlora.errors import UserError, one_line

TOKENIZER_NAMES = ("tokenizer_config.json", "tokenizer.json")
TEMPLATE_NAME = "chat_template.jinja"
PROCESSOR_NAMES = (FEATURE_EXTRACTOR_NAME, PROCESSOR_NAME, VIDEO_PROCESSOR_NAME)


def load_tokenizer(adapter: Adapter, name: str, **options: Any) -> Any:
    """The tokenizer that was saved with the adapter, or else that of the base model; None if it has none.

    Args:
        adapter: A checked adapter folder.
        name: Where the base model comes from.
        options: How transformers is to look for it.

    Raises:
        UserError: The adapter's tokenizer is damaged.
    """
    if _has_tokenizer(adapter):
        try:
            return AutoTokenizer.from_pretrained(adapter.folder, local_files_only=True, trust_remote_code=False)
        except Exception as error:  # a damaged file, a missing library: each with an error of its own
            raise UserError(f"the tokenizer in {adapter.folder} cannot be loaded: {one_line(error)}") from None
    try:
        tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=False, **options)
    except Exception:  # models without text have none, and transformers says so in many ways
        return None
    if is_made_up(tokenizer, name, **options):
        return None
    template = adapter.folder / TEMPLATE_NAME
    if template.is_file():
        try:
            tokenizer.chat_template = template.read_text("utf-8")
        except (OSError, ValueError) as error:
            raise UserError(f"{template} cannot be read: {one_line(error)}") from None
    return tokenizer


def is_made_up(tokenizer: Any, name: str, **options: Any) -> bool:
    """Whether transformers has made up a tokenizer without words, as it does where a model has no tokenizer files.

    Args:
        tokenizer: The tokenizer.
        name: Where it comes from.
        options: How transformers is to look for it.
    """
    files = tokenizer.vocab_files_names.values() or TOKENIZER_NAMES
    return not any(find_file(name, file, **options) for file in files)


def fit_to_tokenizer(adapter: Adapter, model: Any, tokenizer: Any) -> None:
    """Set the model's padding token to that of the tokenizer, if one was saved with the adapter.

    Args:
        adapter: A checked adapter folder.
        model: Its base model.
        tokenizer: The tokenizer that was found for it.

    Raises:
        UserError: The adapter's tokenizer has tokens that the model has no embeddings for.
    """
    if not _has_tokenizer(adapter):
        return
    rows = min((layer.weight.shape[0] for layer in embeddings_of(model)), default=len(tokenizer))
    if len(tokenizer) > rows:
        raise UserError(
            f"the tokenizer in {adapter.folder} has {len(tokenizer)} tokens and the model embeddings for {rows}: those "
            f"of the added tokens are not in the adapter; {HOW_TO_SAVE_ROWS}"
        )
    if tokenizer.pad_token_id is not None:
        model.config.pad_token_id = tokenizer.pad_token_id


def _has_tokenizer(adapter: Adapter) -> bool:
    return any((adapter.folder / file).is_file() for file in TOKENIZER_NAMES)


def fit_generation(adapter: Adapter, model: Any) -> None:
    """Give the model the generation config that stands beside the adapter, if there is one.

    Args:
        adapter: A checked adapter folder.
        model: Its base model.

    Raises:
        UserError: The file is damaged.
    """
    if not (adapter.folder / GENERATION_CONFIG_NAME).is_file() or not model.can_generate():
        return
    try:
        model.generation_config = GenerationConfig.from_pretrained(adapter.folder)
    except Exception as error:  # values of a wrong type make configs stumble in any way
        raise UserError(f"{adapter.folder / GENERATION_CONFIG_NAME} is damaged: {one_line(error)}") from None


def copy_processors(adapter: Adapter, name: str, output: Path, **options: Any) -> None:
    """Copy the configs of the processors that turn images and sounds into a model's input.

    Args:
        adapter: A checked adapter folder.
        name: Where the base model comes from.
        output: The folder to copy to.
        options: How transformers is to look for it.
    """
    for file in PROCESSOR_NAMES:
        beside = adapter.folder / file
        source = beside if beside.is_file() else find_file(name, file, **options)
        if source is not None:
            shutil.copyfile(source, output / file)
