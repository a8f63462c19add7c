"""What all adapted layers have in common: their trains, the update they make, and merging it."""

import warnings
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from jaxtyping import Float
from peft.tuners.tuners_utils import BaseTunerLayer, check_adapters_to_merge
from peft.utils import quantization_extra_repr, resolve_quantization_backend
from torch import Tensor, nn
from torch.func import functional_call

from ttlora.compat import buffer_dict, fetched, gathered, unpack_weight
from ttlora.tensor_train import Update
from ttlora.tensor_train.difference import Difference
from ttlora.tensor_train.start import gaussian_update, pretrained_update, random_update, zero_update
from ttlora.tuners.checks import named
from ttlora.tuners.tt_lora.config import TTLoraConfig, resolve_update
from ttlora.tuners.tt_lora.factors import built_factors

# The paper says no more than "Gaussian": the spread that transformers themselves are initialised with.
PAPER_STD = 0.02


class TTLoraLayer(nn.Module, BaseTunerLayer):
    """A frozen layer and the tensor trains that update its weight, one for each adapter.

    Each adapter is one flat vector of cores, ``cores[adapter]``, whose update is the matrix ``ΔW`` (out x in). A kind
    of layer says how large that matrix is, how the layer stores it, and how it acts on an input.

    PEFT looks for an adapter's parts by names that begin with its method's prefix, which a method's class lists in
    `adapter_layer_names` and `other_param_names`. Here they are `cores`, `dropouts` and `updates`, whatever the method,
    and `starts`, where the method has them.

    Args:
        base_layer: The frozen layer.
        adapter_name: Name of the first adapter.
        config: Its configuration: a `TTLoraConfig`, or that of the method whose layer this is.
        module_name: The layer's name in the model, which the config's patterns are matched with.
        quantization: What PEFT needs to know to merge into a quantised weight.

    Raises:
        ValueError: The config's shape or ranks do not fit the weight, or it asks for what this kind cannot do.
    """

    adapter_layer_names = ("ttlora_cores",)
    other_param_names: tuple[str, ...] = ("ttlora_dropout", "ttlora_update", "ttlora_start")
    # what holds the cores of each adapter
    _cores_container: type[nn.Module] = nn.ParameterDict
    # what the base layer is, as saved configs say it
    kind = "linear"
    # the base layer's parameter that is updated
    parameter_name = "weight"
    # how many experts' weights that parameter stacks, if it does
    experts: int | None = None

    def __init__(
        self, base_layer: nn.Module, adapter_name: str, config: Any, module_name: str, **quantization: Any
    ) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.quantization_backend = resolve_quantization_backend(self.get_base_layer(), **quantization)
        self.out_features, self.in_features = self._matrix_sizes()
        (cores,), (dropouts, updates, *starts) = self.adapter_layer_names, self.other_param_names
        setattr(self, cores, self._cores_container())
        setattr(self, dropouts, nn.ModuleDict())
        setattr(self, updates, {})
        for name in starts:
            setattr(self, name, buffer_dict())
        self._disable_adapters = False
        self.merged_adapters: list[str] = []
        self._active_adapter = adapter_name
        self.update_layer(adapter_name, config, module_name)

    @property
    def cores(self) -> Any:
        """The flat vector of cores of each adapter, by its name."""
        return getattr(self, self.adapter_layer_names[0])

    @property
    def dropouts(self) -> nn.ModuleDict:
        """What each adapter does to its input in training."""
        dropouts: nn.ModuleDict = getattr(self, self.other_param_names[0])
        return dropouts

    @property
    def updates(self) -> dict[str, Any]:
        """The update that the cores of each adapter stand for: an `Update`, or another method's class for it."""
        updates: dict[str, Any] = getattr(self, self.other_param_names[1])
        return updates

    @property
    def starts(self) -> Any:
        """The cores that the update of an adapter is measured from, for those that have them; they do not train."""
        names = self.other_param_names[2:]
        return getattr(self, names[0]) if names else {}

    def update_layer(self, adapter_name: str, config: Any, module_name: str) -> None:
        """Add an adapter, or replace the one of that name, at its starting point.

        Raises:
            ValueError: The config's shape or ranks do not fit the weight, or the weight has no TT-SVD to start from.
        """
        update = self._resolve_update(config, module_name)
        self.updates[adapter_name] = update
        self.dropouts[adapter_name] = nn.Dropout(config.dropout) if config.dropout else nn.Identity()
        with named(module_name):
            self.cores[adapter_name] = nn.Parameter(self._start(update, config))
        if adapter_name in self.starts:
            del self.starts[adapter_name]
        self._move_adapter_to_device_of_base_layer(adapter_name)
        if isinstance(update, Difference):
            # as they are after that move, which may have rounded them
            self.starts[adapter_name] = self.cores[adapter_name].detach().clone()
        self.set_adapter(self.active_adapters, inference_mode=config.inference_mode)

    def _resolve_update(self, config: TTLoraConfig, module_name: str) -> Update:
        """The update that the cores of an adapter stand for."""
        return resolve_update(config, module_name, self.out_features, self.in_features, self.experts)

    def _start(self, update: Update, config: TTLoraConfig) -> Float[Tensor, "parameters"]:
        """The cores at the start of training."""
        # A loaded adapter brings its cores along, and the paper's start takes seconds a layer.
        if config.init_weights == "paper" and not config.inference_mode:
            return gaussian_update(update.shape, PAPER_STD)
        if isinstance(update, Difference) and not config.inference_mode:
            with gathered(self.get_base_layer()):
                weight = self.get_base_weight()
                if not weight.is_meta:
                    return pretrained_update(update, self._as_matrix(weight))
        return zero_update(update) if config.init_weights else random_update(update)

    @property
    def acting_adapters(self) -> list[str]:
        """The adapters whose updates a forward adds to the base layer."""
        if self.disable_adapters or self.merged:
            return []
        return [adapter for adapter in self.active_adapters if adapter in self.cores]

    def adapters_of_rows(self, adapter_names: Sequence[str]) -> tuple[str, ...]:
        """Those adapters of a mixed batch that this layer has, each once, in the order of the rows."""
        if set(adapter_names).isdisjoint(self.cores):
            return ()
        return tuple(name for name in dict.fromkeys(adapter_names) if name in self.cores)

    @property
    def weight_sizes(self) -> list[int]:
        """``[out, in]`` of the weight, or ``[experts, out, in]``."""
        sizes = [self.out_features, self.in_features]
        return sizes if self.experts is None else [self.experts, *sizes]

    def name_in_patterns(self, path: str) -> str:
        """What a config's patterns call the weight of this layer, whose place in the model is `path`."""
        return path

    def factors(
        self, adapter_name: str, dtype: torch.dtype | None = None
    ) -> tuple[Float[Tensor, "r in"], Float[Tensor, "out r"]]:
        """``A`` and ``B`` of the adapter, its scale included: the update is ``B A``.

        Args:
            adapter_name: The adapter.
            dtype: That of the layer's products; None: float32 or wider.
        """
        # a compiled layer is traced once and has to build its own, and so has one that learns where they were built
        # without a graph
        built = None if torch.compiler.is_compiling() else built_factors().of(self, adapter_name)
        if built is not None:
            A, B = built
            learns = torch.is_grad_enabled() and self.cores[adapter_name].requires_grad
            wide_enough = dtype in (None, A.dtype) or A.dtype.itemsize > dtype.itemsize
            if wide_enough and (A.requires_grad or not learns):
                return built if dtype is None else (A.to(dtype), B.to(dtype))
        entries = self.entries(adapter_name)
        with without_autocast(entries.device):
            factors: tuple[Tensor, Tensor] = self.updates[adapter_name].factors(entries, dtype)
            return factors

    @property
    def product_dtype(self) -> torch.dtype | None:
        """The dtype in which a forward that begins now will multiply with the factors; None: it says so itself."""
        return None

    def entries(self, adapter_name: str) -> Float[Tensor, "entries"]:
        """What the update of an adapter is a function of: its cores and, where it has one, the start of them."""
        cores = fetched(self.cores, lambda: self.cores[adapter_name])
        if adapter_name not in self.starts:
            return cores
        return torch.cat([cores, fetched(self.starts, lambda: self.starts[adapter_name]).to(cores)])

    def get_delta_weight(self, adapter: str) -> Tensor:
        """The adapter's dense update, as the base layer stores its weight, in the dtype of the cores."""
        A, B = self.factors(adapter, self._exact_dtype(adapter))
        with without_autocast(A.device):
            return self._as_stored(B @ A).to(self.cores[adapter].dtype)

    def _exact_dtype(self, adapter: str) -> torch.dtype:
        return torch.promote_types(self.cores[adapter].dtype, torch.float32)

    def _matrix_sizes(self) -> tuple[int, int]:
        """Outputs and inputs of the base layer, the sizes of ``ΔW``."""
        raise NotImplementedError

    def _as_stored(self, delta: Float[Tensor, "out in"]) -> Tensor:
        """``ΔW`` in the form in which the base layer stores its weight."""
        return delta

    def _as_matrix(self, stored: Tensor) -> Float[Tensor, "out in"]:
        """The weight in the form of ``ΔW``."""
        return self._as_stored(stored)

    @property
    def base_parameter(self) -> Tensor:
        """The base layer's parameter that is updated, as the base layer holds it."""
        parameter: Tensor = getattr(self.get_base_layer(), self.parameter_name)
        return parameter

    def get_base_weight(self) -> Tensor:
        """The weight that is updated, dequantised if it is quantised."""
        if self.quantization_backend is not None:
            unpack_weight(self.get_base_layer())
            return super().get_base_weight()
        return self.base_parameter.data

    def set_base_weight(self, weight_data: Tensor) -> None:
        """Replace the weight that is updated."""
        if self.quantization_backend is not None:
            unpack_weight(self.get_base_layer())
            super().set_base_weight(weight_data)
            return
        # a new parameter: the old one may be tied to another layer, which has no share in the update
        weight = nn.Parameter(weight_data, requires_grad=self.base_parameter.requires_grad)
        setattr(self.get_base_layer(), self.parameter_name, weight)

    def updated_weight(self, active: list[str]) -> Tensor:
        """``W + ΔW`` of the active adapters, in the dtype of ``W``, for layers that take whole weights."""
        weight = self.base_parameter
        with without_autocast(weight.device):
            for adapter in active:
                if adapter in self.cores:
                    left, right = self._stored_factors(adapter, weight.dtype)
                    # in one product: a dense update beside the weights of all experts would double them
                    add_product = torch.addmm if weight.dim() == 2 else torch.baddbmm
                    weight = add_product(weight, left, right)
        return weight

    def _stored_factors(self, adapter: str, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Two factors whose product is ``ΔW`` in the form in which the base layer stores its weight."""
        A, B = self.factors(adapter, dtype)
        return B, A

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Add the update to the base weight.

        Args:
            safe_merge: Look for entries that are not finite before the base weight changes.
            adapter_names: The adapters to merge; None: the active ones.

        Raises:
            ValueError: With `safe_merge`, the merged weight would not be finite.
        """
        for adapter in check_adapters_to_merge(self, adapter_names):
            if adapter not in self.cores:
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
            if adapter in self.cores:
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
        """The base layer's quantisation, for the printed model."""
        return quantization_extra_repr(self)

    def forward(self, x: Tensor, *args: Any, adapter_names: list[str] | None = None, **kwargs: Any) -> Any:
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
        if adapter_names is not None and not self.disable_adapters and not self.merged:
            return self._mixed_forward(x, adapter_names, *args, **kwargs)
        acting = self.acting_adapters
        return self._adapted_forward(x, acting, *args, **kwargs) if acting else self.base_layer(x, *args, **kwargs)

    def _adapted_forward(self, x: Tensor, active: list[str], *args: Any, **kwargs: Any) -> Any:
        result = self._base_result(x, *args, **kwargs)
        dtype = result.dtype
        for adapter in active:
            result = result + self._update(x, self.factors(adapter, dtype), dtype, self.dropouts[adapter])
        return result.to(dtype)

    def _mixed_forward(self, x: Tensor, adapter_names: list[str], *args: Any, **kwargs: Any) -> Any:
        result = self._base_result(x, *args, **kwargs)
        own = [(adapter, self.factors(adapter, result.dtype)) for adapter in self.adapters_of_rows(adapter_names)]
        for adapter, factors in [*own, *self._pooled_factors(adapter_names)]:
            rows = [row for row, name in enumerate(adapter_names) if name == adapter]
            # nothing drops: a model that trains takes no mixed batches
            update = self._update(x[rows], factors, result.dtype, nn.Identity())
            result[rows] += update.to(result.dtype)
        return result

    def _pooled_factors(self, adapter_names: Sequence[str]) -> list[tuple[str, tuple[Tensor, Tensor]]]:
        """Those adapters of a mixed batch that are in a pool, and their factors."""
        return [
            (name, factors)
            for stack in built_factors().stacks(self)
            for name, factors in zip(stack.names, zip(*stack.factors, strict=True), strict=True)
            if name in adapter_names and name not in self.cores
        ]

    def _base_result(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        result = self.base_layer(x, *args, **kwargs)
        if self.quantization_backend is not None:
            result = self.quantization_backend.maybe_clone_base_result(result)
        return result

    def _update(self, x: Tensor, factors: tuple[Tensor, Tensor], dtype: torch.dtype, dropout: nn.Module) -> Tensor:
        """What an adapter adds to the base layer's output.

        Args:
            x: The layer's input.
            factors: ``A`` and ``B``.
            dtype: Of the base layer's output.
            dropout: For the input.
        """
        raise NotImplementedError

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


def call_with(module: nn.Module, tensors: dict[str, Tensor], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Call a module with other tensors in the place of some of its parameters.

    Args:
        module: The module.
        tensors: Path of a parameter below `module` to what it is to be.
        args: For the call.
        kwargs: For the call.
    """
    owners = {path: module.get_submodule(path.rpartition(".")[0]) for path in tensors}
    names = {path: path.rpartition(".")[2] for path in tensors}
    # FSDP keeps what it gathers as a plain attribute, which is found before the parameter of that name
    held = {path: vars(owner)[names[path]] for path, owner in owners.items() if names[path] in vars(owner)}
    for path in held:
        vars(owners[path])[names[path]] = tensors[path]
    try:
        return functional_call(module, {path: tensors[path] for path in tensors if path not in held}, args, kwargs)
    finally:
        for path, tensor in held.items():
            vars(owners[path])[names[path]] = tensor


def without_autocast(device: torch.device) -> AbstractContextManager[Any]:
    """A context in which autocast is off."""
    return torch.autocast(device.type, enabled=False) if autocasts(device) else nullcontext()


def product_dtype_of(tensor: Tensor) -> torch.dtype:
    """The dtype of a product with a tensor: that of autocast where it is on, or the tensor's own."""
    return torch.get_autocast_dtype(tensor.device.type) if autocasts(tensor.device) else tensor.dtype


def autocasts(device: torch.device) -> bool:
    """Whether autocast is on; the meta device does not know it."""
    return device.type != "meta" and torch.is_autocast_enabled(device.type)
