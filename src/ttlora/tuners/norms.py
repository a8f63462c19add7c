"""LayerNorms and RMSNorms that train beside an adapter."""

from typing import Any

import torch
from peft.utils import AuxiliaryTrainingWrapper, ModulesToSaveWrapper
from torch import Tensor, nn


class TrainedNorm(ModulesToSaveWrapper):
    """A norm with a trained copy for each adapter, saved as PEFT saves any module of ``modules_to_save``.

    Beyond PEFT's wrapper it serves mixed batches, a copy in float32 in a half-precision model, and models from which
    the adapters are unloaded.
    """

    def forward(self, x: Tensor, *args: Any, adapter_names: list[str] | None = None, **kwargs: Any) -> Tensor:
        """The norm of the active adapter, or of each row's own.

        Raises:
            ValueError: The number of names is not the number of rows.
        """
        if adapter_names is None or self.disable_adapters:
            return super().forward(x, *args, **kwargs)  # type: ignore[no-untyped-call]
        if len(x) != len(adapter_names):
            raise ValueError(
                f"a mixed batch of {len(adapter_names)} rows meets a norm over {len(x)} rows, which serves all of them "
                "at once: use one adapter at a time, or adapters with train_layer_norms=False"
            )
        y = self.original_module(x, *args, **kwargs)
        for adapter in sorted(self._adapters.intersection(adapter_names)):
            rows = torch.tensor([row for row, name in enumerate(adapter_names) if name == adapter], device=x.device)
            y = y.index_copy(0, rows, self._norm(adapter, x[rows], *args, **kwargs).to(y.dtype))
        return y

    def _forward_wrapped(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if not self.active_adapters:
            return self._forward_wrapped_passthrough(x, *args, **kwargs)  # type: ignore[no-untyped-call]
        return self._norm(self.active_adapters[0], x, *args, **kwargs)

    def _norm(self, adapter: str, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        norm = self.modules_to_save[adapter]
        dtype = _dtype(norm)
        if dtype == _dtype(self.original_module):
            return norm(x, *args, **kwargs)
        return norm(x.to(dtype), *args, **kwargs).to(x.dtype)

    def check_set_adapter(self, adapter_name: str | list[str]) -> str | None:
        """The one of the adapters whose copy is to act, or None.

        Raises:
            ValueError: There are several.
        """
        several = (
            [] if isinstance(adapter_name, str) else [name for name in adapter_name if name in self.modules_to_save]
        )
        if len(several) > 1:
            raise ValueError(
                f"the adapters {', '.join(several)} cannot be active at once: each has LayerNorms of its own; use one "
                "at a time, or adapters with train_layer_norms=False"
            )
        found: str | None = super().check_set_adapter(adapter_name)
        return found

    def unload_and_optionally_merge_module(
        self, merge: bool, safe_merge: bool, adapter_names: list[str] | None
    ) -> nn.Module:
        """The original norm: the trained copy belongs to the adapter, which is not merged."""
        return self.original_module


def train_norms(model: nn.Module, adapter_name: str, active: bool, inference_mode: bool) -> None:
    """Give an adapter its own copy of every norm of a model, but of those inside modules that train whole.

    Args:
        model: The model, with the adapter's other modules in place.
        adapter_name: The adapter's name.
        active: Whether the adapter is active.
        inference_mode: Whether its copies are frozen.
    """
    for name, norm in _norms(model).items():
        if not isinstance(norm, ModulesToSaveWrapper):
            norm = TrainedNorm(norm, adapter_name)  # type: ignore[no-untyped-call]
            norm.set_adapter([])
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, norm)
        norm.update(adapter_name)  # type: ignore[no-untyped-call]
        if active:
            norm.set_adapter(adapter_name, inference_mode=inference_mode)


def _dtype(norm: nn.Module) -> torch.dtype:
    # a replica of nn.DataParallel has tensors in the place of parameters
    tensors = (vars(module).get("_former_parameters", module._parameters) for module in norm.modules())
    return next(tensor.dtype for held in tensors for tensor in held.values() if tensor is not None)


def _norms(model: nn.Module) -> dict[str, nn.Module]:
    """The norms by name; a norm that another adapter trains is its wrapper."""
    found: dict[str, nn.Module] = {}
    wrappers: list[str] = []
    for name, module in model.named_modules():
        if name.startswith(tuple(wrappers)):
            continue
        norm = module
        if isinstance(module, AuxiliaryTrainingWrapper):
            wrappers.append(f"{name}.")
            norm = module.original_module
        # every model has a class of its own for them
        if type(norm).__name__.endswith(("LayerNorm", "RMSNorm")) and next(norm.parameters(), None) is not None:
            found[name] = module
    return found
