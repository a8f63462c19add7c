"""A linear layer whose weight is updated by a tensor train."""

import warnings
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from jaxtyping import Float
from peft.tuners.tuners_utils import BaseTunerLayer, _get_in_out_features, check_adapters_to_merge
from peft.utils import quantization_extra_repr, resolve_quantization_backend
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.pytorch_utils import Conv1D

from ttlora.tensor_train import Update
from ttlora.tensor_train.linear import low_rank_linear
from ttlora.tensor_train.start import gaussian_update, random_update, zero_update
from ttlora.tuners.tt_lora.config import TTLoraConfig, resolve_update

# The paper says no more than "Gaussian": the spread that transformers themselves are initialised with.
PAPER_STD = 0.02


class TTLoraLayer(nn.Module, BaseTunerLayer):
    """A frozen layer and the tensor trains that update its weight, one for each adapter.

    Each adapter is one flat vector of cores, ``ttlora_cores[adapter]``. For ``Conv1D``, which stores its weight
    transposed, rows of the train are outputs all the same.

    Args:
        base_layer: The frozen layer, ``nn.Linear`` or ``Conv1D``, quantised or not.
        adapter_name: Name of the first adapter.
        config: Its configuration.
        module_name: The layer's name in the model, which the config's patterns are matched with.
        quantization: What PEFT needs to know to merge into a quantised weight.

    Raises:
        ValueError: The config's shape or ranks do not fit the weight.
    """

    adapter_layer_names = ("ttlora_cores",)
    other_param_names = ("ttlora_dropout", "ttlora_update")

    def __init__(
        self, base_layer: nn.Module, adapter_name: str, config: TTLoraConfig, module_name: str, **quantization: Any
    ) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.quantization_backend = resolve_quantization_backend(self.get_base_layer(), **quantization)
        in_features, out_features = _get_in_out_features(self.get_base_layer())
        if in_features is None or out_features is None:
            raise TypeError(f"{module_name}: {type(self.get_base_layer()).__name__} is not a linear layer")
        self.in_features, self.out_features = in_features, out_features
        self.ttlora_cores = nn.ParameterDict()
        self.ttlora_dropout = nn.ModuleDict()
        self.ttlora_update: dict[str, Update] = {}
        self._disable_adapters = False
        self.merged_adapters: list[str] = []
        self._active_adapter = adapter_name
        self.update_layer(adapter_name, config, module_name)

    def update_layer(self, adapter_name: str, config: TTLoraConfig, module_name: str) -> None:
        """Add an adapter, or replace the one of that name, at its starting point.

        Raises:
            ValueError: The config's shape or ranks do not fit the weight.
        """
        update = resolve_update(config, module_name, self.out_features, self.in_features)
        self.ttlora_update[adapter_name] = update
        self.ttlora_dropout[adapter_name] = nn.Dropout(config.dropout) if config.dropout else nn.Identity()
        self.ttlora_cores[adapter_name] = nn.Parameter(_start(update, config))
        self._move_adapter_to_device_of_base_layer(adapter_name)
        self.set_adapter(self.active_adapters, inference_mode=config.inference_mode)

    def factors(self, adapter_name: str) -> tuple[Float[Tensor, "r in"], Float[Tensor, "out r"]]:
        """``A`` and ``B`` of the adapter, its scale included: the update is ``B A``, in float32 or wider."""
        cores = self._fetched_cores(adapter_name)
        # Products of many cores lose too much in half precision, and they are small.
        cores = cores.float() if cores.dtype.itemsize < 4 else cores
        with _without_autocast(cores.device):
            return self.ttlora_update[adapter_name].factors(cores)

    def _fetched_cores(self, adapter_name: str) -> Tensor:
        # With offloading, accelerate fetches parameters when the module that holds them is called. Nobody calls a dict.
        hook = getattr(self.ttlora_cores, "_hf_hook", None)
        if hook is None or not self.ttlora_cores[adapter_name].is_meta:
            return self.ttlora_cores[adapter_name]
        hook.pre_forward(self.ttlora_cores)
        cores = self.ttlora_cores[adapter_name]
        hook.post_forward(self.ttlora_cores, None)
        return cores

    def get_delta_weight(self, adapter: str) -> Tensor:
        """The adapter's dense update, as the base layer stores its weight, in the dtype of the cores."""
        A, B = self.factors(adapter)
        with _without_autocast(A.device):
            delta = B @ A
        return (delta.T if isinstance(self.get_base_layer(), Conv1D) else delta).to(self.ttlora_cores[adapter].dtype)

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Add the update to the base weight.

        Args:
            safe_merge: Look for entries that are not finite before the base weight changes.
            adapter_names: The adapters to merge; None: the active ones.

        Raises:
            ValueError: With `safe_merge`, the merged weight would not be finite.
        """
        for adapter in check_adapters_to_merge(self, adapter_names):
            if adapter not in self.ttlora_cores:
                continue
            merged = self._shifted_weight(adapter, sign=1)
            if safe_merge and not torch.isfinite(merged).all():
                raise ValueError(
                    f"NaNs detected in the merged weights. The adapter {adapter} seems to be broken: "
                    "its cores hold values that are not finite."
                )
            self.set_base_weight(merged)
            self.merged_adapters.append(adapter)

    def unmerge(self) -> None:
        """Take all merged updates out of the base weight again."""
        if not self.merged:
            warnings.warn("Already unmerged. Nothing to do.", stacklevel=2)
            return
        while self.merged_adapters:
            adapter = self.merged_adapters.pop()
            if adapter in self.ttlora_cores:
                self.set_base_weight(self._shifted_weight(adapter, sign=-1))

    @torch.no_grad()
    def _shifted_weight(self, adapter: str, sign: int) -> Tensor:
        weight = self.get_base_weight()
        delta = self.get_delta_weight(adapter).to(weight.device)
        # Added in the wider dtype and rounded once.
        return torch.add(weight, delta, alpha=sign).to(weight.dtype)

    def supports_lora_conversion(self, adapter_name: str = "default") -> bool:
        """True: the update is a low-rank matrix."""
        return True

    def __repr__(self) -> str:
        return "ttlora." + super().__repr__()

    def extra_repr(self) -> str:
        """What the printed model tells of the base layer's quantisation."""
        return quantization_extra_repr(self)


class TTLoraLinear(TTLoraLayer):
    """``y = W0 x + b + s B A x``, with ``B A = ΔW`` from a tensor train and its scale ``s`` (Anjum et al. 2024, Eq. 5).

    "Linear" in its name is what PEFT knows it by when a further adapter asks for "all-linear".
    """

    def forward(
        self, x: Float[Tensor, "*batch in"], *args: Any, adapter_names: list[str] | None = None, **kwargs: Any
    ) -> Float[Tensor, "*batch out"]:
        """The base layer's output plus the update of the active adapters.

        Args:
            x: Input.
            args: Passed on to the base layer.
            adapter_names: One name a row of ``x``, "__base__" for none: a mixed batch.
            kwargs: Passed on to the base layer.

        Raises:
            ValueError: The number of names is not the number of rows, or the layer is merged.
        """
        if adapter_names is not None:
            self._check_adapter_names(x, adapter_names)
        if self.disable_adapters and self.merged:
            self.unmerge()
        if self.disable_adapters or self.merged:
            return self.base_layer(x, *args, **kwargs)
        active = [adapter for adapter in self.active_adapters if adapter in self.ttlora_cores]
        if len(active) == 1 and adapter_names is None and not args and not kwargs:
            base = self._plain_base_layer(x, dropout=self.ttlora_dropout[active[0]])
            if base is not None:
                A, B = self.factors(active[0])
                return low_rank_linear(x, base.weight, base.bias, A.to(x.dtype), B.to(x.dtype))
        result = self.base_layer(x, *args, **kwargs)
        dtype = result.dtype
        if self.quantization_backend is not None:
            result = self.quantization_backend.maybe_clone_base_result(result)
        if adapter_names is not None:
            return self._add_mixed_batch(result, x, adapter_names)
        for adapter in active:
            result = result + self._update(x, adapter, result.dtype)
        return result.to(dtype)

    def _plain_base_layer(self, x: Tensor, dropout: nn.Module) -> nn.Linear | None:
        """The base layer if it is no more than a frozen weight, so that it can be computed with the update."""
        base = self.base_layer
        if type(base) is not nn.Linear or type(base.weight) is not nn.Parameter or base.weight.dtype != x.dtype:
            return None
        if base.weight.requires_grad or (base.bias is not None and base.bias.requires_grad):
            return None
        # a hook, or a forward that was put in its place (as accelerate does to fetch weights), has to be called
        if base._forward_hooks or base._forward_pre_hooks or base._backward_hooks or base._backward_pre_hooks:
            return None
        if "forward" in vars(base) or _autocasts(x.device):
            return None
        return None if isinstance(dropout, nn.Dropout) and dropout.training else base

    def _update(self, x: Tensor, adapter: str, dtype: torch.dtype) -> Tensor:
        A, B = self.factors(adapter)
        x = self.ttlora_dropout[adapter](self._cast_input_dtype(x, dtype))
        return F.linear(F.linear(x, A.to(x.dtype)), B.to(x.dtype))

    def _check_adapter_names(self, x: Tensor, adapter_names: list[str]) -> None:
        if len(x) != len(adapter_names):
            raise ValueError(
                "Length of `adapter_names` should be the same as the number of inputs, but got "
                f"{len(adapter_names)} and {len(x)} respectively."
            )
        if self.merged:
            raise ValueError(
                "Cannot pass `adapter_names` when there are merged adapters, please call `unmerge_adapter` first."
            )

    def _add_mixed_batch(self, result: Tensor, x: Tensor, adapter_names: list[str]) -> Tensor:
        for adapter in sorted(set(adapter_names)):
            if adapter in self.ttlora_cores:
                rows = [row for row, name in enumerate(adapter_names) if name == adapter]
                result[rows] += self._update(x[rows], adapter, result.dtype).to(result.dtype)
        return result


def _start(update: Update, config: TTLoraConfig) -> Float[Tensor, "parameters"]:
    # A loaded adapter brings its cores along, and the paper's start takes seconds a layer.
    if config.init_weights == "paper" and not config.inference_mode:
        return gaussian_update(update.shape, PAPER_STD)
    return zero_update(update) if config.init_weights else random_update(update)


def _without_autocast(device: torch.device) -> AbstractContextManager[Any]:
    return torch.autocast(device.type, enabled=False) if _autocasts(device) else nullcontext()


def _autocasts(device: torch.device) -> bool:
    """Whether autocast is on; the meta device does not know it."""
    return device.type != "meta" and torch.is_autocast_enabled(device.type)
