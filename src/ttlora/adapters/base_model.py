"""The base model of an adapter as it stood when the adapter was trained: its class, its head and its vocabulary."""

from collections.abc import Callable, Mapping
from typing import Any

import transformers
from torch import nn
from transformers import AutoConfig

from ttlora.adapters.header import TensorInfo
from ttlora.adapters.read import Adapter
from ttlora.adapters.tied_weights import base_name
from ttlora.compat import fits_auto_class, holds_adapter_files
from ttlora.errors import UserError, one_line
from ttlora.models.hub import why_not_loaded
from ttlora.models.skeleton import without_weights

# how PEFT saves the embeddings of added tokens
HOW_TO_SAVE_ROWS = "save it with save_embedding_layers=True, or train it with the layer in modules_to_save"

CLASSES = {
    "CAUSAL_LM": "AutoModelForCausalLM",
    "FEATURE_EXTRACTION": "AutoModel",
    "QUESTION_ANS": "AutoModelForQuestionAnswering",
    "SEQ_2_SEQ_LM": "AutoModelForSeq2SeqLM",
    "SEQ_CLS": "AutoModelForSequenceClassification",
    "TOKEN_CLS": "AutoModelForTokenClassification",
}


def load_base_of(
    adapter: Adapter, name: str, fit: Callable[[Any], None] | None = None, **options: Any
) -> tuple[Any, list[str]]:
    """The base model of an adapter, of the class it was trained in, in the number format it was saved in.

    The class is that of the adapter's ``task_type``, or else the one it was wrapped in, or else the model's own. A head
    that was trained with the adapter says how many labels there are, and embeddings that were saved with it how many
    tokens.

    Args:
        adapter: A checked adapter folder.
        name: A local folder, or a name on the hub.
        fit: Fits the model's config to what else is known of the adapter's task.
        options: Where transformers looks for the model: ``revision``, ``local_files_only``.

    Returns:
        The model, and the names of the weights that neither it nor the adapter brings along: they are random.

    Raises:
        UserError: There is no such model, or none of that class, or none with weights that an update can be added to,
            or the trained head fits none of its sizes, or embeddings of added tokens are nowhere to be found.
    """
    require_mergeable(adapter)
    try:
        if holds_adapter_files(name, **options):
            raise UserError(
                f"model {name} holds an adapter, too, which transformers would load with it: give a plain model"
            )
        config = AutoConfig.from_pretrained(name, trust_remote_code=False, **options)
        _require_full_precision(name, config)
        if fit is not None:
            fit(config)
        model_class = _model_class(adapter.config, config)
        _fit_head(adapter, model_class, config)
        model, report = model_class.from_pretrained(
            name,
            config=config,
            dtype="auto",
            ignore_mismatched_sizes=True,
            output_loading_info=True,
            trust_remote_code=False,
            **options,
        )
    except UserError:
        raise
    except Exception as error:  # a missing file, a damaged file, a missing library: each with an error of its own
        raise UserError(f"model {name} cannot be loaded: {why_not_loaded(error)}") from None
    _fit_vocabulary(adapter, model, name)
    missing = {*report["missing_keys"], *(key for key, *_ in report["mismatched_keys"])}
    return model, sorted(missing - _trained(adapter).keys())


def require_mergeable(adapter: Adapter) -> None:
    """Refuse an adapter that updates no weights.

    Raises:
        UserError: It is one of learned prompts.
    """
    if adapter.config.is_prompt_learning:
        method = adapter.config.peft_type.value
        raise UserError(f"{adapter.folder} is an adapter of {method}, which updates no weights: it cannot be merged")


def _require_full_precision(name: str, config: Any) -> None:
    quantization = getattr(config, "quantization_config", None)
    if not quantization:
        return
    method = quantization.get("quant_method") if isinstance(quantization, dict) else None
    raise UserError(
        f"model {name} is stored quantised{f' by {method}' if method else ''}, and an update cannot be added to such "
        "weights: give the full-precision model that it was made of as `model`"
    )


def _model_class(adapter_config: Any, config: Any) -> Any:
    wrapped = (adapter_config.auto_mapping or {}).get("base_model_class")
    names = [CLASSES.get(adapter_config.task_type), wrapped, *(config.architectures or [])]
    for name in names:
        found = getattr(transformers, name or "", None)
        # an adapter of a model of images and texts calls itself one of a causal model
        is_model = isinstance(found, type) and issubclass(found, transformers.PreTrainedModel)
        if is_model or fits_auto_class(found, config):
            return found
    return transformers.AutoModel


def _fit_head(adapter: Adapter, model_class: Any, config: Any) -> None:
    """Give the config the number of labels with which the trained head has the sizes it was saved in."""
    trained = _trained(adapter)
    misfits = [_misfits(trained, model_class, config)]
    for labels in sorted({trained[key].shape[0] for key in misfits[0] if trained[key].shape}):
        config.num_labels = labels
        misfits.append(_misfits(trained, model_class, config))
        if not misfits[-1]:
            return
    if misfits[0]:
        key = min(misfits, key=len)[0]
        raise UserError(
            f"{adapter.folder} does not fit {config.name_or_path}, which has no place for '{key}' of sizes "
            f"{list(trained[key].shape)}, trained with the adapter"
        )


def _misfits(trained: Mapping[str, TensorInfo], model_class: Any, config: Any) -> list[str]:
    """The tensors whose sizes differ in the model, apart from the number of tokens, which `_fit_vocabulary` sets."""
    model = without_weights(model_class, config)
    sizes = {key: tuple(tensor.shape) for key, tensor in model.state_dict().items() if key in trained}
    # where the number of rows is free, it is some number
    free = {
        key: (rows, *sizes[key][1:]) for key in _vocabulary(model) if key in sizes for rows in trained[key].shape[:1]
    }
    return [key for key, size in sizes.items() if trained[key].shape != free.get(key, size) or 0 in trained[key].shape]


def _fit_vocabulary(adapter: Adapter, model: Any, name: str) -> None:
    """Give the model as many tokens as the embeddings have rows that were saved with the adapter."""
    saved = {key: info.shape[0] for key, info in _trained(adapter).items() if key in _vocabulary(model)}
    before = {key: len(weight) for key, weight in _vocabulary(model).items()}
    if all(before[key] == rows for key, rows in saved.items()):
        return
    if len(set(saved.values())) > 1:
        sizes = ", ".join(f"{key} of {rows} rows" for key, rows in saved.items())
        raise UserError(f"{adapter.folder} holds {sizes}: no model has embeddings of both sizes")
    rows = next(iter(saved.values()))
    try:
        model.resize_token_embeddings(rows, mean_resizing=False)
    except Exception as error:  # each architecture that cannot has its own way to say so
        raise UserError(
            f"{adapter.folder} has embeddings for {rows} tokens, to which {name} cannot be resized: {one_line(error)}"
        ) from None
    known = {weight for key, weight in _vocabulary(model).items() if key in saved}
    for key, weight in _vocabulary(model).items():
        if weight not in known and weight.dim() > 1 and before[key] < rows:
            raise UserError(
                f"{adapter.folder} was trained with {rows} tokens and {name} has {before[key]}, but rows {before[key]} "
                f"to {rows - 1} of {key} are not in the adapter: {HOW_TO_SAVE_ROWS}"
            )


def embeddings_of(model: Any) -> list[nn.Embedding | nn.Linear]:
    """The layers of a model that have a row for each token: its embeddings and its output layer, where it has them.

    Args:
        model: A model of transformers.
    """
    layers = []
    for find in (model.get_input_embeddings, model.get_output_embeddings):
        try:
            layers.append(find())
        except NotImplementedError:  # models of images and sounds
            continue
    return [layer for layer in layers if isinstance(layer, nn.Embedding | nn.Linear)]


def _vocabulary(model: Any) -> dict[str, nn.Parameter]:
    """The parameters with a row for each token, by every name they have."""
    layers = embeddings_of(model)
    return {
        f"{path}.{name}": parameter
        for path, module in model.named_modules(remove_duplicate=False)
        if any(module is layer for layer in layers)
        for name, parameter in module.named_parameters(recurse=False)
    }


def _trained(adapter: Adapter) -> dict[str, TensorInfo]:
    """The tensors that were saved beside the updates, by their names in the base model."""
    return {base_name(key): info for key, info in adapter.others.items()}
