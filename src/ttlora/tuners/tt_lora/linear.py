"""Linear layers whose weight is updated by tensor trains."""

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.pytorch_utils import Conv1D

from ttlora.compat import has_hooks, in_out_features, is_plain_parameter, is_view
from ttlora.tensor_train.linear import low_rank_linear
from ttlora.tensor_train.update import transformed
from ttlora.tuners.tt_lora.factors import Stack, built_factors
from ttlora.tuners.tt_lora.layer import TTLoraLayer, autocasts, product_dtype_of, without_autocast

# what autocast brings into its own dtype
AUTOCAST = (torch.float32, torch.bfloat16, torch.float16)


class TTLoraLinear(TTLoraLayer):
    """``y = W0 x + b + s B A x``, with ``B A = ΔW`` from a tensor train and its scale ``s`` (Anjum et al. 2024, Eq. 5).

    For ``nn.Linear``, quantised or not, and ``transformers``' ``Conv1D``, which stores its weight transposed. "Linear"
    in its name is what PEFT knows it by when a further adapter asks for "all-linear".
    """

    _last_dtype: torch.dtype | None = None

    def _matrix_sizes(self) -> tuple[int, int]:
        in_features, out_features = in_out_features(self.get_base_layer())
        if in_features is None or out_features is None:
            raise TypeError(f"{type(self.get_base_layer()).__name__} is not a linear layer")
        return out_features, in_features

    def _as_stored(self, delta: Float[Tensor, "out in"]) -> Tensor:
        return delta.T if isinstance(self.get_base_layer(), Conv1D) else delta

    @property
    def product_dtype(self) -> torch.dtype | None:
        """That of autocast, or of the weight; for a quantised weight that of the last forward."""
        if self.quantization_backend is not None:
            return self._last_dtype
        return product_dtype_of(self.base_parameter)

    def _adapted_forward(self, x: Tensor, active: list[str], *args: Any, **kwargs: Any) -> Any:
        if len(active) > 1 or args or kwargs or _drops(self.dropouts[active[0]]):
            return super()._adapted_forward(x, active, *args, **kwargs)
        dtype = product_dtype_of(x)
        base = self._plain_base_layer(x, dtype)
        if base is not None:
            bias = None if base.bias is None else base.bias.to(dtype)
            return low_rank_linear(x.to(dtype), base.weight.to(dtype), bias, *self.factors(active[0], dtype))
        if self.quantization_backend is None or transformed():
            return super()._adapted_forward(x, active)
        result = self.base_layer(x)
        self._last_dtype = result.dtype
        A, B = self.factors(active[0], result.dtype)
        inputs = self._cast_input_dtype(x, result.dtype)
        with without_autocast(x.device):
            # it was made from a quantised weight just now, for nobody else: the update is added where it lies, unless
            # a function of bitsandbytes has made it as a view, which autograd lets nobody change
            rows, hidden = result.view(-1, result.shape[-1]), F.linear(inputs, A).view(-1, A.shape[0])
            summed = torch.addmm(rows, hidden, B.T) if is_view(result) else rows.addmm_(hidden, B.T)
            return summed.view(result.shape)

    def _plain_base_layer(self, x: Tensor, dtype: torch.dtype) -> nn.Linear | None:
        """The base layer if it is no more than a frozen weight, so that it can be computed with the update.

        Args:
            x: The layer's input.
            dtype: That of its products; under autocast, which casts neither float64 nor integers, x may have another.
        """
        base = self.base_layer
        if type(base) is not nn.Linear or not is_plain_parameter(base.weight):
            return None
        if any(given.dtype != dtype and given.dtype not in AUTOCAST for given in (x, base.weight)):
            return None
        if not autocasts(x.device) and base.weight.dtype != dtype:
            return None
        if base.weight.requires_grad or (base.bias is not None and base.bias.requires_grad):
            return None
        # a hook, or a forward that was put in its place (as accelerate does to fetch weights), has to be called
        return None if has_hooks(base) or "forward" in vars(base) else base

    def _mixed_forward(self, x: Tensor, adapter_names: list[str], *args: Any, **kwargs: Any) -> Any:
        built = built_factors().stacks(self)
        in_stacks = {name for stack in built for name in stack.names}
        others = [name for name in self.adapters_of_rows(adapter_names) if name not in in_stacks]
        if any(self.cores[name].is_meta for name in others):
            return super()._mixed_forward(x, adapter_names, *args, **kwargs)
        stacks = [*built, *self._stacks_of(others)]
        if not stacks:
            return self.base_layer(x, *args, **kwargs)
        result = self._base_result(x, *args, **kwargs)
        for stack in stacks:
            result = self._with_updated_rows(result, x, stack, adapter_names)
        return result

    def _stacks_of(self, adapters: Sequence[str]) -> list[Stack]:
        """The factors of this layer's own adapters, those of one shape in one stack."""
        alike = defaultdict(list)
        for name in adapters:
            alike[self.updates[name]].append(name)
        stacks = []
        for update, names in alike.items():
            entries = torch.stack([self.entries(name) for name in names])
            with without_autocast(entries.device):
                stacks.append(Stack(tuple(names), update.factors(entries), {}))
        return stacks

    def _with_updated_rows(self, result: Tensor, x: Tensor, stack: Stack, adapter_names: Sequence[str]) -> Tensor:
        """The layer's output with the updates of a stack added to its rows, in two batched products."""
        chosen = stack.rows_of(adapter_names)
        if not chosen.rows:
            return result
        everywhere = len(chosen.rows) == len(x)
        of_rows = x if everywhere else x[chosen.rows]
        inputs = self._cast_input_dtype(of_rows, result.dtype)
        A, B = stack.factors
        if not chosen.in_runs:
            A, B = A[chosen.adapters], B[chosen.adapters]
        inputs = inputs.reshape(len(A), -1, x.shape[-1])
        hidden = inputs @ A.to(inputs).mT
        B = B.to(inputs).mT
        if everywhere and result.dtype == inputs.dtype and not torch.is_grad_enabled():
            # added where the result lies: a sum of its own would be one more pass over it
            flat = result.view(len(A), -1, result.shape[-1])
            return flat.baddbmm_(hidden, B).view(result.shape)
        update = (hidden @ B).reshape(*of_rows.shape[:-1], -1).to(result.dtype)
        if everywhere:
            return result + update
        return result.index_add(0, torch.tensor(chosen.rows, device=x.device), update)

    def _update(self, x: Tensor, factors: tuple[Tensor, Tensor], dtype: torch.dtype, dropout: nn.Module) -> Tensor:
        A, B = factors
        x = dropout(self._cast_input_dtype(x, dtype))
        return F.linear(F.linear(x, A.to(x.dtype)), B.to(x.dtype))


def _drops(dropout: nn.Module) -> bool:
    return isinstance(dropout, nn.Dropout) and dropout.training
