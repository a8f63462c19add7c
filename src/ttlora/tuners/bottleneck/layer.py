"""A linear layer with bottleneck adapters behind it."""

from typing import Any

import torch
from jaxtyping import Float
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from ttlora.compat import in_out_features
from ttlora.tuners.bottleneck.config import NON_LINEARITIES, BottleneckConfig
from ttlora.tuners.bottleneck.projection import make_projections


class BottleneckLinear(nn.Module, BaseTunerLayer):
    """``y = h + Σ s up(f(down(h)))`` over the active adapters, with ``h`` the frozen layer's output.

    "Linear" in its name is what PEFT knows it by when a further adapter asks for "all-linear".

    Args:
        base_layer: The frozen layer.
        adapter_name: Name of the first adapter.
        config: Its configuration.
        module_name: The layer's name in the model, for errors.

    Raises:
        ValueError: The config's sizes do not fit the layer.
        TypeError: The layer is not linear.
    """

    adapter_layer_names = ("bottleneck_down", "bottleneck_up")
    other_param_names = ("bottleneck_non_linearity", "bottleneck_scale")

    def __init__(self, base_layer: nn.Module, adapter_name: str, config: BottleneckConfig, module_name: str) -> None:
        super().__init__()
        self.base_layer = base_layer
        _, outputs = in_out_features(self.get_base_layer())
        if outputs is None:
            raise TypeError(f"{type(self.get_base_layer()).__name__} is not a linear layer")
        self.outputs = outputs
        self.bottleneck_down = nn.ModuleDict()
        self.bottleneck_up = nn.ModuleDict()
        # by name: a function of torch cannot be copied into another process
        self.bottleneck_non_linearity: dict[str, str] = {}
        self.bottleneck_scale: dict[str, float] = {}
        self._active_adapter = adapter_name
        self.update_layer(adapter_name, config, module_name)

    def update_layer(self, adapter_name: str, config: BottleneckConfig, module_name: str) -> None:
        """Add an adapter, or replace the one of that name, at its starting point.

        Raises:
            ValueError: The config's sizes do not fit the layer.
        """
        down, up = make_projections(config, module_name, self.outputs)
        self.bottleneck_down[adapter_name], self.bottleneck_up[adapter_name] = down, up
        self.bottleneck_non_linearity[adapter_name] = config.non_linearity
        self.bottleneck_scale[adapter_name] = config.scale
        self._move_adapter_to_device_of_base_layer(adapter_name)
        self.set_adapter(self.active_adapters, inference_mode=config.inference_mode)

    def forward(self, x: Tensor, *args: Any, adapter_names: list[str] | None = None, **kwargs: Any) -> Tensor:
        """The base layer's output with what the active adapters add to it.

        Args:
            x: Input.
            args: Passed on to the base layer.
            adapter_names: One name a row of ``x``, "__base__" for none: a mixed batch.
            kwargs: Passed on to the base layer.

        Raises:
            ValueError: The number of names is not the number of rows.
        """
        if adapter_names is not None and len(x) != len(adapter_names):
            raise ValueError(
                "Length of `adapter_names` should be the same as the number of inputs, but got "
                f"{len(adapter_names)} and {len(x)} respectively."
            )
        h: Tensor = self.base_layer(x, *args, **kwargs)
        if self.disable_adapters:
            return h
        y = h
        for adapter in self.active_adapters if adapter_names is None else sorted(set(adapter_names)):
            if adapter not in self.bottleneck_down:
                continue
            scale = self.bottleneck_scale[adapter]
            if adapter_names is None:
                y = torch.add(y, self._through_bottleneck(adapter, h), alpha=scale)
            else:
                rows = torch.tensor([row for row, name in enumerate(adapter_names) if name == adapter], device=h.device)
                y = y.index_add(0, rows, self._through_bottleneck(adapter, h[rows]), alpha=scale)
        return y

    def _through_bottleneck(self, adapter: str, h: Float[Tensor, "*batch outputs"]) -> Float[Tensor, "*batch outputs"]:
        down: Any = self.bottleneck_down[adapter]
        up = self.bottleneck_up[adapter]
        act = NON_LINEARITIES[self.bottleneck_non_linearity[adapter]]
        # not the first of its parameters: a replica of nn.DataParallel has none
        hidden = act(down(self._cast_input_dtype(h, down.bias.dtype)))
        result: Tensor = up(hidden).to(h.dtype)
        return result
