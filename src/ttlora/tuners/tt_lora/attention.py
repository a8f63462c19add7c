"""``nn.MultiheadAttention`` whose projections are updated by tensor trains."""

from typing import Any

from torch import Tensor, nn

from ttlora.tuners.tt_lora.config import TTLoraConfig
from ttlora.tuners.tt_lora.layer import TTLoraLayer, call_with
from ttlora.tuners.tt_lora.linear import TTLoraLinear


class TTLoraMultiheadAttention(TTLoraLayer):
    """Attention with ``W + ΔW`` for its fused input projection and for its output projection.

    The fused weight of query, key and value has one train; the output projection is an adapted layer of its own, named
    as in the base layer. PyTorch's attention takes whole weights and no layers, so both sums are formed in every call;
    there is no input of an adapter that could be dropped, and a config's dropout has no effect here, as in LoRA.

    Raises:
        ValueError: Query, key and value have weights of their own.
    """

    kind = "attention"
    parameter_name = "in_proj_weight"

    def __init__(
        self, base_layer: nn.Module, adapter_name: str, config: TTLoraConfig, module_name: str, **quantization: Any
    ) -> None:
        super().__init__(base_layer, adapter_name, config, module_name, **quantization)
        attention: Any = self.get_base_layer()
        attention.out_proj = TTLoraLinear(
            attention.out_proj, adapter_name, config, f"{module_name}.out_proj", **quantization
        )

    def update_layer(self, adapter_name: str, config: TTLoraConfig, module_name: str) -> None:
        """Add an adapter to both projections."""
        super().update_layer(adapter_name, config, module_name)
        if isinstance(self.out_proj, TTLoraLinear):
            self.out_proj.update_layer(adapter_name, config, f"{module_name}.out_proj")

    def _matrix_sizes(self) -> tuple[int, int]:
        weight = getattr(self.get_base_layer(), self.parameter_name)
        if weight is None:
            raise ValueError(
                "nn.MultiheadAttention with kdim or vdim of its own cannot be adapted: it has no fused weight"
            )
        return weight.shape[0], weight.shape[1]

    @property
    def out_proj(self) -> Any:
        """The output projection, adapted on its own."""
        return self.get_base_layer().out_proj

    @property
    def _qkv_same_embed_dim(self) -> bool:
        # nn.TransformerEncoderLayer asks for it before it passes our forward by and hands the plain weights to a kernel
        return self.disable_adapters or self.merged

    def __getattr__(self, name: str) -> Any:
        """What layers around an attention ask it for, such as ``batch_first``."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name == "base_layer":
                raise
            return getattr(self.base_layer, name)

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Add the updates to both weights."""
        super().merge(safe_merge, adapter_names)
        self.out_proj.merge(safe_merge, adapter_names)

    def unmerge(self) -> None:
        """Take all merged updates out of both weights again."""
        super().unmerge()
        if self.out_proj.merged:
            self.out_proj.unmerge()

    def unload_and_optionally_merge_module(
        self, merge: bool, safe_merge: bool, adapter_names: list[str] | None
    ) -> nn.Module:
        """The base layer without its wrapper; with `merge`, the updates are added to its weights first."""
        if merge:
            self.merge(safe_merge, adapter_names)
        base_layer: Any = self.get_base_layer()
        base_layer.out_proj = self.out_proj.get_base_layer()
        return base_layer

    def _adapted_forward(self, x: Tensor, active: list[str], *args: Any, **kwargs: Any) -> Any:
        weights = {
            "in_proj_weight": self.updated_weight(active),
            "out_proj.base_layer.weight": self.out_proj.updated_weight(active),
        }
        return call_with(self.base_layer, weights, (x, *args), kwargs)

    def _check_adapter_names(self, x: Tensor, adapter_names: list[str]) -> None:
        raise TypeError("nn.MultiheadAttention takes one weight for all rows: no mixed adapter batches")
