"""A model without weights: every module in its place and of its size, on torch's meta device."""

import difflib
from typing import Any

import torch
import transformers

from ttlora.compat import build_from_config
from ttlora.errors import UserError, one_line
from ttlora.models.architectures import BUILT_IN
from ttlora.models.hub import from_folder_or_hub, why_not_loaded


def build_skeleton(model: str) -> Any:
    """Build a model's modules on the meta device, where parameters have sizes and no memory.

    Args:
        model: A built-in architecture, a folder that holds `config.json`, or a name on the hub, of which only
            `config.json` is fetched.

    Returns:
        A `transformers.PreTrainedModel`, of the class that the config names.

    Raises:
        UserError: There is no such architecture, folder or name, or transformers cannot build a model of its config.
    """
    config = read_config(model)
    try:
        return without_weights(_model_class(config), config)
    except Exception as error:  # a constructor may stumble over a wrong value in any way
        raise UserError(
            f"the config.json of {model} describes no model that can be built: {one_line(error)}"
        ) from error


def read_config(model: str) -> Any:
    """The config of a built-in architecture, of a local folder, or of a model on the hub.

    Raises:
        UserError: There is no such model, or transformers cannot read its config.
    """
    if model in BUILT_IN:
        return BUILT_IN[model].config()
    close = difflib.get_close_matches(model.lower(), BUILT_IN, n=1, cutoff=0.5)
    hint = f"did you mean {close[0]}? " if close else ""
    way_out = f"{hint}built-in architectures: {', '.join(BUILT_IN)}"
    return from_folder_or_hub(model, _load_config, way_out)


def without_weights(model_class: Any, config: Any) -> Any:
    """The modules of a model on the meta device.

    Args:
        model_class: A model class of transformers, or one of its Auto classes.
        config: The model's config.
    """
    with torch.device("meta"):
        return build_from_config(model_class, config)


def _load_config(source: str, **options: Any) -> Any:
    try:
        # code that a model brings along is never run
        return transformers.AutoConfig.from_pretrained(source, trust_remote_code=False, **options)
    except Exception as error:  # a missing file, a damaged one, an unknown type: each with an error of its own
        raise UserError(f"the config.json of {source} cannot be read: {why_not_loaded(error)}") from error


def _model_class(config: Any) -> Any:
    """The transformers class that the config names, or else the bare model of its type."""
    for name in config.architectures or []:
        model_class = getattr(transformers, name, None)
        if model_class is not None and getattr(model_class, "config_class", None) is type(config):
            return model_class
    return transformers.AutoModel
