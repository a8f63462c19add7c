"""A model with an adapter's update added to its weights: an ordinary model of transformers, which needs no PEFT."""

from typing import Any

import torch
import transformers
from peft import PeftModel, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from safetensors.torch import load_file
from transformers import AutoConfig

from ttlora.adapters.header import TensorInfo
from ttlora.adapters.read import MODEL_PREFIX, Adapter
from ttlora.errors import UserError, one_line

CLASSES = {
    "CAUSAL_LM": "AutoModelForCausalLM",
    "FEATURE_EXTRACTION": "AutoModel",
    "QUESTION_ANS": "AutoModelForQuestionAnswering",
    "SEQ_2_SEQ_LM": "AutoModelForSeq2SeqLM",
    "SEQ_CLS": "AutoModelForSequenceClassification",
    "TOKEN_CLS": "AutoModelForTokenClassification",
}


def load_base(adapter: Adapter, name: str, local_files_only: bool = False) -> tuple[Any, list[str]]:
    """The base model of an adapter, of the class it was trained in, in the number format it was saved in.

    The class is that of the adapter's ``task_type``, or else the one it was wrapped in, or else the model's own. A head
    that was trained with the adapter says how many labels there are.

    Args:
        adapter: A checked adapter folder.
        name: A local folder, or a name on the hub.
        local_files_only: Ask the hub for nothing.

    Returns:
        The model, and the names of the weights that neither it nor the adapter brings along: they are random.

    Raises:
        UserError: There is no such model, or none of that class, or the trained head fits none of its sizes.
    """
    _require_mergeable(adapter)
    try:
        config = AutoConfig.from_pretrained(name, local_files_only=local_files_only)
        model_class = _model_class(adapter.config, config)
        _fit_head(adapter, model_class, config)
        model, report = model_class.from_pretrained(
            name,
            config=config,
            dtype="auto",
            ignore_mismatched_sizes=True,
            output_loading_info=True,
            local_files_only=local_files_only,
        )
    except UserError:
        raise
    except Exception as error:  # a missing file, a damaged file, a missing library: each with an error of its own
        raise UserError(f"model {name} cannot be loaded: {one_line(error)}") from None
    missing = {*report["missing_keys"], *(key for key, *_ in report["mismatched_keys"])}
    return model, sorted(missing - _trained(adapter).keys())


def _model_class(adapter_config: Any, config: Any) -> Any:
    wrapped = (adapter_config.auto_mapping or {}).get("base_model_class")
    names = [CLASSES.get(adapter_config.task_type), wrapped, *(config.architectures or [])]
    for name in names:
        found = getattr(transformers, name or "", None)
        if found is not None:
            return found
    return transformers.AutoModel


def _fit_head(adapter: Adapter, model_class: Any, config: Any) -> None:
    """Give the config the number of labels with which the trained head has the sizes it was saved in."""
    head = _trained(adapter)
    if not head:
        return
    rows = {info.shape[0] for info in head.values() if info.shape}
    build = getattr(model_class, "from_config", None) or model_class._from_config
    misfits: list[list[str]] = []
    for labels in (config.num_labels, *sorted(rows)):
        if labels != config.num_labels:
            config.num_labels = labels
        with torch.device("meta"):
            shapes = {key: tuple(tensor.shape) for key, tensor in build(config).state_dict().items()}
        misfits.append([key for key, info in head.items() if shapes.get(key) != info.shape])
        if not misfits[-1]:
            return
    key = min(misfits, key=len)[0]
    raise UserError(
        f"{adapter.folder} does not fit the model, which has no place for '{key}' of sizes {list(head[key].shape)}, "
        "trained with the adapter"
    )


def _trained(adapter: Adapter) -> dict[str, TensorInfo]:
    """What was trained beside the updates, by its name in the base model."""
    return {key.removeprefix(MODEL_PREFIX).replace(".base_layer.", "."): info for key, info in adapter.others.items()}


def _require_mergeable(adapter: Adapter) -> None:
    if adapter.config.is_prompt_learning:
        method = adapter.config.peft_type.value
        raise UserError(f"{adapter.folder} is an adapter of {method}, which updates no weights: it cannot be merged")


def merge_adapter(adapter: Adapter, model: Any) -> Any:
    """The model with the update added to its weights, and what was trained besides in its place.

    Each weight keeps its number format: updates are added in the wider one and rounded once.

    Args:
        adapter: A checked adapter folder.
        model: Its base model, which is changed.

    Raises:
        UserError: The adapter does not fit the model, cannot be merged, or is not finite.
    """
    _require_mergeable(adapter)
    dtypes = {name: weight.dtype for name, weight in model.named_parameters()}
    try:
        adapted = get_peft_model(model, adapter.config)
    except (ValueError, TypeError) as error:
        raise UserError(f"{adapter.folder} does not fit the model: {one_line(error)}") from None
    _load(adapter, adapted)
    try:
        merged = adapted.merge_and_unload(safe_merge=True)
    except ValueError as error:
        raise UserError(f"{adapter.folder} cannot be merged: {one_line(error)}") from None
    except (AttributeError, NotImplementedError):
        raise UserError(f"adapters of {adapter.config.peft_type.value} cannot be merged") from None
    for name, weight in merged.named_parameters():
        weight.data = weight.data.to(dtypes[name])
    return merged


def _load(adapter: Adapter, adapted: PeftModel) -> None:
    saved = load_file(adapter.weights_file)
    wanted = get_peft_model_state_dict(adapted, save_embedding_layers=False)
    for key, tensor in wanted.items():
        if key not in saved or saved[key].shape != tensor.shape:
            sizes = f"is {list(saved[key].shape)} in it" if key in saved else "is not in it"
            raise UserError(
                f"{adapter.folder} does not fit the model: {key.removeprefix(MODEL_PREFIX)} {sizes} and "
                f"{list(tensor.shape)} in the model"
            )
    extra = saved.keys() - wanted.keys()
    if extra:
        # PEFT saves embeddings with the adapter where it thinks that they may have been resized
        extra -= get_peft_model_state_dict(adapted, save_embedding_layers=True).keys()
    if extra:
        raise UserError(
            f"{adapter.folder} does not fit the model, which has no {min(extra).removeprefix(MODEL_PREFIX)}"
        )
    set_peft_model_state_dict(adapted, saved)
