"""What is in an adapter: its shapes, ranks and sizes, and how far the update has moved."""

from collections.abc import Mapping
from dataclasses import dataclass

from ttlora.adapters.read import Adapter, TensorInfo, shape_of_cores
from ttlora.errors import UserError
from ttlora.tensor_train import TensorTrain, TTShape
from ttlora.tensor_train.start import update_scale
from ttlora.tuners.tt_lora import TTLoraConfig, resolve_shape
from ttlora.tuners.tt_lora.config import resolve_scale

Sizes = Mapping[str, tuple[int, int]]


@dataclass(frozen=True)
class ModuleReport:
    """What an adapter holds for one module.

    Attributes:
        name: The module's name in the base model; "" for what belongs to none, such as learned prompts.
        tensors: Its tensors, by key in the file.
        shape: Dims and ranks of its train; None for other methods. Rows and columns mean something only with a norm.
        norm: Frobenius norm of the update, its scale included; not finite where the cores are not. None for other
            methods, and where the sizes of the base model's modules are not known.
    """

    name: str
    tensors: Mapping[str, TensorInfo]
    shape: TTShape | None = None
    norm: float | None = None

    @property
    def parameters(self) -> int:
        """The adapter's parameters for this module."""
        return sum(info.parameters for info in self.tensors.values())


def inspect_modules(adapter: Adapter, sizes: Sizes) -> list[ModuleReport]:
    """Report on each adapted module.

    Norms come from the cores: the dense update is never built.

    Args:
        adapter: A checked adapter folder.
        sizes: Out and in features of the base model's linear modules; empty where the base model is not at hand. The
            scale of a TT-LoRA update depends on them, and so does its norm.

    Raises:
        UserError: The adapter's shapes do not fit these sizes.
    """
    if not isinstance(adapter.config, TTLoraConfig):
        return [ModuleReport(name, tensors) for name, tensors in adapter.modules.items()]
    return [_inspect_train(adapter, name, tensors, sizes) for name, tensors in adapter.modules.items()]


def _inspect_train(adapter: Adapter, name: str, tensors: Mapping[str, TensorInfo], sizes: Sizes) -> ModuleReport:
    size = _find_size(name, sizes)
    if size is None:
        return ModuleReport(name, tensors, shape_of_cores(adapter.config, name))
    try:
        shape = resolve_shape(adapter.config, name, *size)
    except ValueError as error:
        base = adapter.config.base_model_name_or_path
        raise UserError(f"{adapter.folder} does not fit its base model '{base}': {error}") from error
    (key,) = tensors
    return ModuleReport(name, tensors, shape, _norm(adapter, name, key, shape))


def _find_size(name: str, sizes: Sizes) -> tuple[int, int] | None:
    """A module's size; one of the two names may start at a head's model and the other at the bare model in it."""
    if name in sizes:
        return sizes[name]
    found = {size for known, size in sizes.items() if known.endswith(f".{name}") or name.endswith(f".{known}")}
    return found.pop() if len(found) == 1 else None


def _norm(adapter: Adapter, name: str, key: str, shape: TTShape) -> float:
    config = adapter.config
    scale = resolve_scale(config, name, shape) * update_scale(shape, config.core_size)
    return abs(scale) * TensorTrain(shape, adapter.load(key).double()).norm().item()
