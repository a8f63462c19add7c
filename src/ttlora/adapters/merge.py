"""A model with an adapter's update added to its weights: an ordinary model of transformers, which needs no PEFT."""

import hashlib
from typing import Any

import torch
from peft import PeftModel, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors.torch import load_file
from torch.nn.utils.parametrize import is_parametrized

from ttlora.adapters.base_model import require_mergeable
from ttlora.adapters.read import MODEL_PREFIX, Adapter
from ttlora.adapters.tied_weights import TiedWeights
from ttlora.adapters.weights import require_fit
from ttlora.compat import renamed_for_transformers
from ttlora.errors import UserError, one_line


def merge_adapter(adapter: Adapter, model: Any) -> Any:
    """The model with the update added to its weights, and what was trained besides in its place.

    Each weight keeps its number format: updates are added in the wider one and rounded once. A layer that shares its
    weight with another, and is adapted alone, gets a weight of its own.

    Args:
        adapter: A checked adapter folder.
        model: Its base model, which is changed.

    Raises:
        UserError: The adapter does not fit the model, cannot be merged, is in the model already, or is not finite.
    """
    require_mergeable(adapter)
    _require_known_residual(adapter)
    contained = _merged_before(adapter, model.config)
    dtypes = {name: weight.dtype for name, weight in model.named_parameters(remove_duplicate=False)}
    tied = TiedWeights(model)
    refusal = f"{adapter.folder} does not fit {model.config.name_or_path or 'the model'}"
    try:
        adapted = get_peft_model(model, adapter.config)
        _load(adapter, adapted, refusal)
    except UserError:
        raise
    except Exception as error:  # each method has its own way to say so
        raise UserError(f"{refusal}: {one_line(error)}") from None
    _require_plain_weights(adapter, adapted)
    tied.split(adapted)
    try:
        merged = adapted.merge_and_unload(safe_merge=True)
    except Exception as error:  # each method has its own way to refuse
        if isinstance(error, NotImplementedError) and not str(error):
            raise UserError(f"adapters of {adapter.config.peft_type.value} cannot be merged") from None
        raise UserError(f"{adapter.folder} cannot be merged: {one_line(error)}") from None
    for name, weight in merged.named_parameters():
        if name not in dtypes:
            raise UserError(f"{adapter.folder} cannot be merged: PEFT leaves a layer of its own in the model, {name}")
        weight.data = weight.data.to(dtypes[name])
    tied.join(merged)
    merged.config.merged_adapters = contained
    return merged


def _merged_before(adapter: Adapter, config: Any) -> list[str]:
    """The adapters that a model contains, this one included, as its config names them: by a hash of their weights."""
    contained = getattr(config, "merged_adapters", None)
    before = contained if isinstance(contained, list) else []
    with adapter.weights_file.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest in before:
        raise UserError(
            f"{adapter.folder} is merged into {config.name_or_path or 'the model'} already: give the model without it"
        )
    return [*before, digest]


def _require_known_residual(adapter: Adapter) -> None:
    start = getattr(adapter.config, "init_lora_weights", None)
    if isinstance(start, str) and start.startswith("pissa_niter"):
        raise UserError(
            f"{adapter.folder} starts from a random approximation of the base model's weights ({start}), and what was "
            "left of them is not in it: convert it with path_initial_model_for_weight_conversion of PEFT"
        )


def _require_plain_weights(adapter: Adapter, adapted: PeftModel) -> None:
    if not hasattr(adapted, "merge_and_unload"):
        raise UserError(f"adapters of {adapter.config.peft_type.value} cannot be merged")
    for name, layer in adapted.named_modules():
        if isinstance(layer, BaseTunerLayer) and is_parametrized(layer.get_base_layer()):
            raise UserError(
                f"{adapter.folder} cannot be merged: {name.removeprefix(MODEL_PREFIX)} makes its weight from others at "
                "every step, as with a weight norm, and has none that an update can be added to"
            )


def _load(adapter: Adapter, adapted: PeftModel, refusal: str) -> None:
    saved = load_file(adapter.weights_file)
    for key, tensor in saved.items():
        if not torch.isfinite(tensor).all():
            raise UserError(f"{adapter.folder} cannot be merged: {key.removeprefix(MODEL_PREFIX)} is not finite")
    # adapters of older versions of transformers name the modules of some models otherwise
    found = renamed_for_transformers(adapted, adapter.config, saved)
    require_fit(
        refusal,
        {key: tensor.shape for key, tensor in found.items()},
        get_peft_model_state_dict(adapted, save_embedding_layers=False),
        # PEFT saves embeddings with the adapter where it thinks that they may have been resized
        spare=lambda: get_peft_model_state_dict(adapted, save_embedding_layers=True),
    )
    set_peft_model_state_dict(adapted, saved)
