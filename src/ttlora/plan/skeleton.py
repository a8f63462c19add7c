"""A model without weights: every module in its place and of its size, on torch's meta device."""

import difflib
import os
from pathlib import Path
from typing import Any

import torch
import transformers

from ttlora.errors import UserError
from ttlora.hub import require_on_hub
from ttlora.plan.architectures import BUILT_IN


def build_skeleton(model: str) -> Any:
    """Build a model's modules on the meta device, where parameters have sizes and no memory.

    Args:
        model: A built-in architecture, a folder that holds `config.json`, or a name on the hub, of which only
            `config.json` is fetched.

    Returns:
        A `transformers.PreTrainedModel`, of the class that the config names.

    Raises:
        UserError: There is no such architecture, folder or name, or its config is none that transformers knows.
    """
    if model in BUILT_IN:
        config, model_class = BUILT_IN[model].config(), getattr(transformers, BUILT_IN[model].model_class)
    else:
        config = _read_config(model)
        model_class = _model_class(config)
    try:
        with torch.device("meta"):
            return model_class(config) if model_class else transformers.AutoModel.from_config(config)
    except Exception as error:  # a constructor may stumble over a wrong value in any way
        raise UserError(f"the config.json of '{model}' describes no model that can be built: {_line(error)}") from error


def _read_config(model: str) -> Any:
    """The config of a local folder or of a name on the hub, from the hub's cache if it is there."""
    folder = Path(os.path.expanduser(model))
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise UserError(f"the folder '{model}' holds no config.json; name a folder with a saved transformers model")
        return _parse_config(str(folder), model)
    if folder.exists():
        raise UserError(f"'{model}' is a file; name the folder that holds the model's config.json")
    if folder.is_absolute() or model.startswith((".", "~")) or model.count("/") > 1:
        raise UserError(f"there is no folder '{model}'")
    try:
        return _parse_config(model, model, local_files_only=True)
    except OSError:
        close = difflib.get_close_matches(model.lower(), BUILT_IN, n=1, cutoff=0.5)
        hint = f"did you mean '{close[0]}'? " if close else ""
        require_on_hub("model", model, f"{hint}built-in architectures: {', '.join(BUILT_IN)}")
        return _parse_config(model, model)


def _parse_config(source: str, model: str, **options: Any) -> Any:
    try:
        # Code that a model brings along is never run to plan an adapter for it.
        return transformers.AutoConfig.from_pretrained(source, trust_remote_code=False, **options)
    except OSError as error:
        if options:
            raise
        raise UserError(f"the config.json of '{model}' cannot be read: {_line(error)}") from error
    except Exception as error:
        raise UserError(f"the config.json of '{model}' is none that transformers knows: {_line(error)}") from error


def _model_class(config: Any) -> Any:
    """The transformers class that the config names, or None for the bare model of its type."""
    for name in config.architectures or []:
        model_class = getattr(transformers, name, None)
        if model_class is not None and getattr(model_class, "config_class", None) is type(config):
            return model_class
    return None


def _line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0].strip() if lines else type(error).__name__
