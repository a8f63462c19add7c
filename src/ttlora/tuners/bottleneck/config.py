"""What a bottleneck adapter is: its size, its trains, its targets, and what trains beside it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from peft import PeftConfig
from torch import Tensor
from torch.nn import functional as F

from ttlora.compat import add_peft_type
from ttlora.tensor_train import TTShape, Update
from ttlora.tuners.checks import (
    LARGEST_ORDER,
    by_size,
    is_size,
    named,
    require_fields,
    require_saving,
    settle_fields,
)
from ttlora.values import is_number, short_repr

BOTTLENECK = add_peft_type("BOTTLENECK")
NON_LINEARITIES: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "relu": F.relu,
    "silu": F.silu,
    "tanh": torch.tanh,
}
# The middle of a feed-forward layer is that wide; a config from outside gets no more memory than such a layer.
WIDEST = 4


@dataclass
class BottleneckConfig(PeftConfig):
    """Configuration of bottleneck adapters: ``y = h + s up(f(down(h)))``, behind the output ``h`` of a target module.

    With the defaults the adapters of Houlsby et al. 2019; with ``r=64, tt_rank=5`` those of LoRETTA-adp (Yang et al.
    2024), whose two projections are tensor trains with dense biases.

    Args:
        r: Width of the bottleneck.
        tt_rank: None: dense projections. Otherwise the TT-rank of all bonds of both projections; ranks above what an
            unfolding can have are clipped, which loses nothing.
        shape: Dims of the train of ``up`` (outputs x r, rows first); ``down`` has them backwards. "auto": near-equal
            dims of about 20 at most. A dict gives dims by the target's number of outputs. What "auto" chose is
            written into the config that is saved.
        core_size: Root mean square of the cores' entries at the start (see ``ttlora.tensor_train.update``), or None for
            plain trains. It is part of what saved cores mean: leave it as it was trained. As in TT-LoRA, the
            gradient is not the derivative then.
        non_linearity: ``f``: "gelu", "relu", "silu" or "tanh".
        scale: ``s``.
        init_weights: True: ``up`` starts at zero, so that the model is unchanged. False: it is random, for tests.
        train_layer_norms: All LayerNorms and RMSNorms of the model train too, one copy for each adapter, saved with it.
        target_modules: Names (or a regular expression, or "all-linear") of the modules to stand behind; None: the
            output projections of attention and feed-forward, by the model's type.
        exclude_modules: Names (or a regular expression) of modules to leave out.
        layers_to_transform: Index or indices of the layers to adapt.
        layers_pattern: Name of the list of layers, where `layers_to_transform` needs it.
        modules_to_save: Other modules to train and save whole, such as a task's head.

    Raises:
        ValueError: A value is not one of those above.
    """

    r: int = field(default=8, metadata={"help": "width of the bottleneck"})
    tt_rank: int | None = field(default=None, metadata={"help": "TT-rank of the projections; None: dense"})
    shape: str | list[int] | dict[str, list[int]] = field(
        default="auto", metadata={"help": "'auto', dims with the product outputs x r, or dims by number of outputs"}
    )
    core_size: float | None = field(
        default=0.02, metadata={"help": "root mean square of the cores' entries at the start"}
    )
    non_linearity: str = field(default="gelu", metadata={"help": "'gelu', 'relu', 'silu' or 'tanh'"})
    scale: float = field(default=1.0, metadata={"help": "what multiplies the adapter's output"})
    init_weights: bool = field(default=True, metadata={"help": "True: no change at the start; False: random"})
    train_layer_norms: bool = field(default=True, metadata={"help": "train all LayerNorms and RMSNorms too"})
    target_modules: set[str] | list[str] | str | None = field(
        default=None, metadata={"help": "modules to stand behind"}
    )
    exclude_modules: set[str] | list[str] | str | None = field(default=None, metadata={"help": "modules to leave out"})
    layers_to_transform: list[int] | int | None = field(default=None, metadata={"help": "layers to adapt"})
    layers_pattern: list[str] | str | None = field(default=None, metadata={"help": "name of the list of layers"})
    modules_to_save: list[str] | None = field(default=None, metadata={"help": "other modules to train and save whole"})

    def __post_init__(self) -> None:
        settle_fields(self, BOTTLENECK)
        super().__post_init__()  # type: ignore[no-untyped-call]
        require_fields(
            self,
            r=(is_size, "a positive integer"),
            tt_rank=(lambda value: value is None or is_size(value), "a positive integer or None"),
            core_size=(lambda value: value is None or (is_number(value) and value > 0), "a positive number or None"),
            non_linearity=(lambda value: value in list(NON_LINEARITIES), f"one of {', '.join(NON_LINEARITIES)}"),
            scale=(is_number, "a finite number"),
            init_weights=(lambda value: isinstance(value, bool), "True or False"),
            train_layer_norms=(lambda value: isinstance(value, bool), "True or False"),
        )
        if isinstance(self.shape, dict):
            self.shape = by_size("shape", self.shape)
        for dims in self.shape.values() if isinstance(self.shape, dict) else [self.shape]:
            _check_dims(dims)


def resolve_trains(config: BottleneckConfig, module_name: str, outputs: int) -> tuple[Update, Update] | None:
    """What the cores of ``down`` (r x outputs) and ``up`` (outputs x r) mean, or None for dense projections.

    Args:
        config: The adapter's config.
        module_name: The target's name in the model, for errors.
        outputs: The target's number of outputs.

    Raises:
        ValueError: The bottleneck is no bottleneck for that many outputs, or shape and rank do not fit it.
    """
    if config.r > WIDEST * outputs:
        raise ValueError(
            f"{module_name}: r={config.r} is more than {WIDEST} times its {outputs} outputs, which is no bottleneck; "
            "lower r"
        )
    if config.tt_rank is None:
        return None
    dims: Any = config.shape
    if isinstance(dims, Mapping):
        if str(outputs) not in dims:
            raise ValueError(
                f"{module_name} has {outputs} outputs, but shape has dims for {', '.join(dims)} alone: add dims for "
                f"{outputs}, or use 'auto'"
            )
        dims = dims[str(outputs)]
    with named(module_name):
        up = TTShape.build(outputs, config.r, dims, config.tt_rank)
        require_saving(up, f"tt_rank={config.tt_rank}", outputs * config.r, "projection")
        down = TTShape.build(config.r, outputs, up.dims[::-1], config.tt_rank)
        return Update(down, core_size=config.core_size), Update(up, core_size=config.core_size)


def write_shape(config: BottleneckConfig, dims: Mapping[int, tuple[int, ...]]) -> None:
    """Write what "auto" came to into the config of an adapter, so that no later choice of "auto" changes it.

    Args:
        config: The adapter's config.
        dims: Number of outputs to the dims of ``up``, for all targets.
    """
    if config.shape == "auto" and dims:
        by_outputs = {str(outputs): list(chosen) for outputs, chosen in dims.items()}
        config.shape = by_outputs if len(by_outputs) > 1 else next(iter(by_outputs.values()))


def _check_dims(dims: object) -> None:
    if dims == "auto":
        return
    if not isinstance(dims, list | tuple):
        raise ValueError(f"shape has {short_repr(dims)}, which is neither 'auto' nor a list of positive integers")
    if len(dims) > LARGEST_ORDER:
        raise ValueError(f"shape has {len(dims):,} dims; {LARGEST_ORDER} are the most")
    if not all(map(is_size, dims)):
        raise ValueError(f"shape has {short_repr(dims)}, which is neither 'auto' nor a list of positive integers")
