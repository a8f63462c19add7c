"""All that reaches into private parts of PEFT, transformers, accelerate, bitsandbytes and torch, one function each.

Private is what a library names with an underscore or does not document. What PEFT documents for methods of one's own
(`BaseTuner`, `BaseTunerLayer`, its registry and its tables) and what transformers and accelerate document is used where
it is needed. Each function names the version that it was read in; pyproject.toml bounds the versions from above.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from functools import wraps
from typing import Any

from peft import PeftConfig
from peft.utils import PeftType
from torch import Tensor, nn


def add_peft_type(name: str) -> PeftType:
    """Add ``name`` to `PeftType` as a real member, or return the one that is there (PEFT 0.21, Python 3.11 to 3.14).

    PEFT keys its registries and reads saved configs by members of this enumeration, so a plain string would fail in
    places such as ``transformers``' ``load_adapter``; a Python enumeration has no public way to grow.

    Args:
        name: The method's name in capitals.
    """
    if name in PeftType.__members__:
        return PeftType[name]
    member = str.__new__(PeftType, name)
    member._name_, member._value_ = name, name
    member.__dict__.update(__objclass__=PeftType, _sort_order_=len(PeftType))
    PeftType._member_names_.append(name)
    PeftType._member_map_[name] = member
    PeftType._value2member_map_[name] = member
    type.__setattr__(PeftType, name, member)
    return member


def add_hotswap(peft_type: PeftType, swap: Callable[..., None]) -> None:
    """Let PEFT's ``hotswap_adapter`` swap the adapters of a method: `peft.utils.hotswap` (PEFT 0.21).

    PEFT keeps a table of the methods that it swaps, and swaps LoRA's factors and scales in one function, which is
    replaced here by one that leaves the adapters of other methods to it.

    Args:
        peft_type: The method.
        swap: Takes the model, the tensors by their names in it, the adapter's name and the new config.
    """
    from peft.utils import hotswap

    swap_others = hotswap.hotswap_adapter_from_state_dict

    @wraps(swap_others)
    def swap_any(
        model: nn.Module, state_dict: dict[str, Tensor], adapter_name: str, config: PeftConfig, **kwargs: Any
    ) -> None:
        if config.peft_type == peft_type:
            swap(model, state_dict, adapter_name, config)
        else:
            swap_others(model, state_dict, adapter_name, config, **kwargs)

    hotswap.CONFIG_KEYS_TO_CHECK[peft_type] = []
    hotswap.hotswap_adapter_from_state_dict = swap_any  # type: ignore[assignment]


def matching_pattern(patterns: Iterable[str], name: str) -> str:
    """The first pattern that matches a module's name, as PEFT matches ``rank_pattern``; the name if none does.

    `peft.utils.other.get_pattern_key` (PEFT 0.21).
    """
    from peft.utils.other import get_pattern_key

    key: str = get_pattern_key(list(patterns), name)
    return key


def look_up(values: Mapping[str, Any], name: str, default: Any) -> Any:
    """The value of the first pattern that matches a module's name.

    Args:
        values: Pattern to value, such as ``rank_pattern``.
        name: The module's name.
        default: The value if no pattern matches.
    """
    return values.get(matching_pattern(values, name), default)


def is_target(config: PeftConfig, name: str) -> bool:
    """Whether a config's ``target_modules`` means a module, by PEFT's own rules.

    `peft.tuners.tuners_utils.check_target_module_exists` (PEFT 0.21).
    """
    from peft.tuners.tuners_utils import check_target_module_exists

    return bool(check_target_module_exists(config, name))


def with_all_linear(config: PeftConfig, model: nn.Module) -> Any:
    """The config with the names of modules in the place of "all-linear".

    `peft.tuners.tuners_utils._maybe_include_all_linear_layers` (PEFT 0.21).
    """
    from peft.tuners.tuners_utils import _maybe_include_all_linear_layers

    return _maybe_include_all_linear_layers(config, model)


def shortest_names(paths: set[str], others: set[str]) -> set[str]:
    """The shortest endings of paths that are endings of no other path.

    `peft.tuners.tuners_utils._find_minimal_target_modules` (PEFT 0.21).

    Args:
        paths: Paths of modules.
        others: Paths that are not to be meant.
    """
    from peft.tuners.tuners_utils import _find_minimal_target_modules

    return _find_minimal_target_modules(paths, others)


def in_out_features(layer: nn.Module) -> tuple[Any, Any]:
    """Inputs and outputs of a linear layer, quantised or not; (None, None) for a layer that is not linear.

    `peft.tuners.tuners_utils._get_in_out_features` (PEFT 0.21).
    """
    from peft.tuners.tuners_utils import _get_in_out_features

    return _get_in_out_features(layer)


def holds_adapters(layer: Any) -> bool:
    """Whether a tuner layer has any adapter: `BaseTunerLayer._all_available_adapter_names` (PEFT 0.21)."""
    return bool(layer._all_available_adapter_names())


def renamed_for_transformers(model: Any, config: PeftConfig, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Saved tensors under the names that the modules have in this version of transformers.

    `peft.utils.transformers_weight_conversion.convert_peft_adapter_state_dict_for_transformers` (PEFT 0.21).
    """
    from peft.utils.transformers_weight_conversion import convert_peft_adapter_state_dict_for_transformers

    renamed: dict[str, Tensor] = convert_peft_adapter_state_dict_for_transformers(model, config, state)
    return renamed


def stacked_experts(model: nn.Module) -> Iterator[tuple[str, list[str]]]:
    """How a stacked parameter's path ends, and the names of the layers that each expert once had for it.

    `transformers.conversion_mapping` and `transformers.core_model_loading` (transformers 5.18 to 5.23).
    """
    from transformers import PreTrainedModel
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import MergeModulelist, WeightConverter

    if not isinstance(model, PreTrainedModel):
        return
    for conversion in get_model_conversion_mapping(model):
        if isinstance(conversion, WeightConverter) and any(
            isinstance(operation, MergeModulelist) for operation in conversion.operations
        ):
            names = [pattern.removesuffix(".weight").rpartition(".")[2] for pattern in conversion.source_patterns]
            yield conversion.target_patterns[0].strip("."), names


def build_from_config(model_class: Any, config: Any) -> Any:
    """A model without pretrained weights: ``_from_config`` where it is no Auto class (transformers 5.18)."""
    return (getattr(model_class, "from_config", None) or model_class._from_config)(config)


def fits_auto_class(auto_class: Any, config: Any) -> bool:
    """Whether an Auto class of transformers has a model for a config: ``_model_mapping`` (transformers 5.18)."""
    known = getattr(auto_class, "_model_mapping", None)
    return known is not None and type(config) in known


def holds_adapter_files(model: str, **options: Any) -> bool:
    """Whether a model's folder or repository holds an adapter, which transformers would load with it.

    `transformers.utils.peft_utils.find_adapter_config_file` (transformers 5.18).
    """
    from transformers.utils.peft_utils import find_adapter_config_file

    return find_adapter_config_file(model, **options) is not None


def find_file(model: str, name: str, **options: Any) -> str | None:
    """The path of a model's file, from its folder, the hub's cache or the hub; None: it has no such file.

    `transformers.utils.hub.cached_file` (transformers 5.18).
    """
    from transformers.utils.hub import cached_file

    found: str | None = cached_file(model, name, _raise_exceptions_for_missing_entries=False, **options)
    return found


def reads_both_sides(config: Any) -> bool:
    """Whether a model sees what follows a token, as BERT does.

    `MODEL_FOR_MASKED_LM_MAPPING_NAMES` (transformers 5.18).
    """
    from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES

    return config.model_type in MODEL_FOR_MASKED_LM_MAPPING_NAMES and not config.is_decoder


def add_fused_head(model: Any) -> None:
    """Let a causal model give log-probabilities of its labels without making the logits: ``fused_lm_head=True``.

    `trl.trainer.utils.add_fused_lm_head` (TRL 1.16); what the model says without the argument stays as it is.
    """
    from trl.trainer.utils import add_fused_lm_head

    add_fused_lm_head(model, outputs=("log_probs", "is_top1"))


def use_one_gpu(arguments: Any) -> None:
    """Let Trainer use one GPU where one process sees several: ``TrainingArguments._n_gpu`` (transformers 5.18)."""
    arguments._n_gpu = min(arguments.n_gpu, 1)


def fetched(holder: nn.Module, read: Any) -> Tensor:
    """A parameter that accelerate has offloaded, fetched for one use: the hook ``_hf_hook`` (accelerate 1.10).

    accelerate fetches parameters when the module that holds them is called. Nobody calls an ``nn.ParameterDict``.

    Args:
        holder: The module that holds the parameter.
        read: Gives the parameter.
    """
    hook = getattr(holder, "_hf_hook", None)
    tensor: Tensor = read()
    if hook is None or not tensor.is_meta:
        return tensor
    hook.pre_forward(holder)
    tensor = read()
    hook.post_forward(holder, None)
    return tensor


def gathered(layer: nn.Module) -> AbstractContextManager[None]:
    """Within it, a layer has its weights whole that DeepSpeed shares out to several processes (PEFT 0.21).

    `peft.utils.integrations.gather_params_ctx`.
    """
    from peft.utils.integrations import gather_params_ctx

    whole: AbstractContextManager[None] = gather_params_ctx(list(layer.parameters(recurse=False)), modifier_rank=None)
    return whole


def buffer_dict() -> Any:
    """Saved tensors by name that do not train: `peft.tuners._buffer_dict.BufferDict` (PEFT 0.21).

    PEFT moves, casts and deletes what an adapter has in such a container as it does with parameters.
    """
    from peft.tuners._buffer_dict import BufferDict

    return BufferDict(persistent=True)


def unpack_weight(layer: nn.Module) -> None:
    """Give a layer its 4-bit weight back as it was saved, if bitsandbytes has packed it anew (bitsandbytes 0.50).

    Where a processor has AVX512-BF16, `bitsandbytes.nn.Linear4bit` packs its weight in an order of its own the first
    time that it infers on it. PEFT's functions that read and write quantised weights do not know that order: what they
    read would be another matrix. The next inference packs it again.
    """
    weight: Any = getattr(layer, "weight", None)
    if getattr(getattr(weight, "quant_state", None), "packing_format_for_cpu", False):
        from bitsandbytes.functional import _convert_weight_packed_for_cpu_inverse

        weight.data, weight.quant_state = _convert_weight_packed_for_cpu_inverse(weight.data, weight.quant_state)


def keep_unpacked(model: nn.Module) -> None:
    """Let no inference pack 4-bit weights anew: ``Linear4bit.support_avx512bf16_for_cpu`` (bitsandbytes 0.50).

    No gradient comes through weights that are packed so: what trains before them would stay as it is.
    """
    module: Any
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False


def without_data() -> AbstractContextManager[Any]:
    """Within it, tensors have sizes and no data: `torch._subclasses.fake_tensor.FakeTensorMode` (torch 2.7 to 2.13)."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    return FakeTensorMode()


def is_plain_parameter(weight: Tensor) -> bool:
    """Whether a weight is a parameter and no more: no quantised one, though one without data.

    `torch._subclasses.fake_tensor.FakeTensor` (torch 2.7 to 2.13).
    """
    from torch._subclasses.fake_tensor import FakeTensor

    return type(weight) in (nn.Parameter, FakeTensor)


def has_hooks(module: nn.Module) -> bool:
    """Whether anything is called before or after a module's forward or backward (torch 2.7 to 2.13)."""
    return bool(
        module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks
    )


def is_view(tensor: Tensor) -> bool:
    """Whether autograd knows a tensor as a view of another: ``_is_view`` (torch 2.7)."""
    return tensor._is_view()


def convolve_as(layer: Any, x: Tensor, kernel: Tensor) -> Tensor:
    """A convolution with another kernel and the layer's stride, padding and dilation: ``_conv_forward`` (torch 2.7)."""
    result: Tensor = layer._conv_forward(x, kernel, None)
    return result
