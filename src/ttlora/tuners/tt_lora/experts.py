"""Parameters outside of linear layers, such as the stacked weights of experts, updated by tensor trains."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ttlora.tuners.tt_lora.config import TTLoraConfig
from ttlora.tuners.tt_lora.layer import TTLoraLayer, call_with, without_autocast


class ParamWrapper(TTLoraLayer):
    """A module with ``W + ΔW`` in the place of one of its parameters, named by a config's ``target_parameters``.

    A parameter of three dimensions stacks the weights of experts, (experts x out x in), or (experts x in x out) where
    the module says ``is_transposed``. One train serves them all, with the expert's index as a mode at the boundary:

        ΔW[e] = L M[e] A,   L (out x r) and A (r x in) shared, M[e] (r x r)

    Several parameters of a module are wrappers inside one another. PEFT finds them by this class's name.

    Args:
        base_layer: The module that holds the parameter, or another wrapper around it.
        adapter_name: Name of the first adapter.
        config: Its configuration.
        module_name: Module and parameter, as the config's patterns see them.
        parameter_name: The parameter.
        quantization: As for every layer.

    Raises:
        ValueError: The parameter has neither two nor three dimensions, or the config asks for dropout: there is no
            place for it in front of a parameter.
    """

    kind = "parameter"

    def __init__(
        self,
        base_layer: nn.Module,
        adapter_name: str,
        config: TTLoraConfig,
        module_name: str,
        parameter_name: str,
        **quantization: Any,
    ) -> None:
        self.parameter_name = parameter_name
        super().__init__(base_layer, adapter_name, config, module_name, **quantization)

    def update_layer(self, adapter_name: str, config: TTLoraConfig, module_name: str) -> None:
        """Add an adapter, or replace the one of that name, at its starting point."""
        if config.dropout:
            raise ValueError(f"{module_name}: a parameter has no place for dropout={config.dropout}; set it to 0")
        super().update_layer(adapter_name, config, module_name)

    def name_in_patterns(self, path: str) -> str:
        """The path with the parameter's name."""
        return f"{path}.{self.parameter_name}"

    @property
    def _is_transposed(self) -> bool:
        return self.experts is not None and bool(getattr(self.get_base_layer(), "is_transposed", False))

    def _matrix_sizes(self) -> tuple[int, int]:
        sizes = tuple(self.base_parameter.shape)
        if len(sizes) not in (2, 3):
            raise ValueError(f"parameter {self.parameter_name} has the sizes {list(sizes)}: a train needs two or three")
        self.experts = sizes[0] if len(sizes) == 3 else None
        out_features, in_features = reversed(sizes[-2:]) if self._is_transposed else sizes[-2:]
        return out_features, in_features

    def _move_adapter_to_device_of_base_layer(self, adapter_name: str, device: torch.device | None = None) -> None:
        # PEFT looks at the base layer's weight, which need not be there
        cores, weight = self.cores[adapter_name], self.base_parameter
        if not cores.is_meta:
            dtype = weight.dtype if weight.dtype.is_floating_point else cores.dtype
            self.cores[adapter_name] = cores.to(weight.device if device is None else device, dtype=dtype)

    def _stored_factors(self, adapter: str, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        A, B = self.factors(adapter, dtype)
        if self.experts is None:
            return B, A
        # rows of the train are (output, expert)
        B = B.reshape(self.out_features, self.experts, -1).transpose(0, 1)
        A = A.expand(self.experts, *A.shape)
        return (A.mT, B.mT) if self._is_transposed else (B, A)

    def _as_matrix(self, stored: Tensor) -> Float[Tensor, "out in"]:
        if self.experts is None:
            return stored
        rows = stored.mT if self._is_transposed else stored
        return rows.transpose(0, 1).flatten(0, 1)

    def get_delta_weight(self, adapter: str) -> Tensor:
        """The adapter's dense update, as the parameter is stored, in the dtype of the cores."""
        left, right = self._stored_factors(adapter, self._exact_dtype(adapter))
        with without_autocast(left.device):
            return (left @ right).to(self.cores[adapter].dtype)

    def unload_and_optionally_merge_module(
        self, merge: bool, safe_merge: bool, adapter_names: list[str] | None
    ) -> nn.Module:
        """The base layer without its wrappers; with `merge`, their updates are added to its weights first."""
        wrapper: nn.Module = self
        while merge and isinstance(wrapper, ParamWrapper):
            wrapper.merge(safe_merge, adapter_names)
            wrapper = wrapper.base_layer
        return self.get_base_layer()

    def _adapted_forward(self, x: Tensor, active: list[str], *args: Any, **kwargs: Any) -> Any:
        path, layer = self.parameter_name, self.base_layer
        while isinstance(layer, ParamWrapper):
            path, layer = f"base_layer.{path}", layer.base_layer
        return call_with(self.base_layer, {path: self.updated_weight(active)}, (x, *args), kwargs)

    def _check_adapter_names(self, x: Tensor, adapter_names: list[str]) -> None:
        raise ValueError(f"parameter {self.parameter_name} serves all rows alike: no mixed adapter batches")
