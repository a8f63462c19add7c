"""What a LoRETTA-rep adapter is: its inner size, its trains, its targets, and what trains beside it."""

from dataclasses import dataclass, field
from typing import Any

from peft import PeftConfig

from ttlora.compat import add_peft_type, look_up
from ttlora.tensor_train import TTShape, Update
from ttlora.tuners.checks import (
    LARGEST_ORDER,
    by_size,
    is_size,
    named,
    require_fields,
    require_pattern,
    require_saving,
    settle_fields,
)
from ttlora.tuners.loretta_rep.update import LorettaRepUpdate
from ttlora.tuners.tt_lora.config import MATCHED_AS, by_pattern
from ttlora.values import is_number, short_repr

LORETTA_REP = add_peft_type("LORETTA_REP")


@dataclass
class LorettaRepConfig(PeftConfig):
    """Configuration of LoRETTA-rep (Yang et al. 2024): ``W = W0 + (α / r) B A``, as LoRA, with a train for each factor.

    ``B`` (out x r) and the transpose of ``A`` (in x r) are tensor trains. Unlike the authors' package it starts with an
    update of zero.

    Args:
        r: Inner size of ``B A``.
        alpha: ``α``.
        tt_rank: TT-rank of all bonds of both trains. Ranks above what an unfolding can have are clipped, which loses
            nothing.
        shape: "auto" (near-equal dims of about 20 at most, rows first), or dims by a factor's number of rows, with the
            product rows x r, as ``{"768": [8, 8, 12, 8]}``; numbers that are not there get what "auto" says. What
            "auto" chose is written into the config that is saved.
        core_size: Root mean square of the cores' entries at the start (see ``ttlora.tensor_train.update``), or None for
            plain trains. It is part of what saved cores mean: leave it as it was trained. As in TT-LoRA, the
            gradient is not the derivative then.
        dropout: Probability with which entries of the adapter's input are dropped in training.
        init_weights: True: the update is exactly zero at the start. False: a random update, for tests.
        train_layer_norms: All LayerNorms and RMSNorms of the model train too, one copy for each adapter, saved with it.
        target_modules: Names (or a regular expression, or "all-linear") of the modules to adapt; None: query and value
            of self-attention, by the model's type.
        exclude_modules: Names (or a regular expression) of modules to leave out.
        layers_to_transform: Index or indices of the layers to adapt.
        layers_pattern: Name of the list of layers, where `layers_to_transform` needs it.
        modules_to_save: Other modules to train and save whole, such as a task's head.
        weight_sizes: ``[out, in]`` of the adapted weights by module name, written when the adapter is made.

    Raises:
        ValueError: A value is not one of those above.
    """

    r: int = field(default=8, metadata={"help": "inner size of the update"})
    alpha: float = field(default=16.0, metadata={"help": "scale of the update, over r"})
    tt_rank: int = field(default=5, metadata={"help": "TT-rank of both factors"})
    shape: str | dict[str, list[int]] = field(
        default="auto", metadata={"help": "'auto', or dims with the product rows x r by number of rows"}
    )
    core_size: float | None = field(
        default=0.02, metadata={"help": "root mean square of the cores' entries at the start"}
    )
    dropout: float = field(default=0.0, metadata={"help": "dropout probability of the adapter's input"})
    init_weights: bool = field(default=True, metadata={"help": "True: zero update; False: random"})
    train_layer_norms: bool = field(default=True, metadata={"help": "train all LayerNorms and RMSNorms too"})
    target_modules: set[str] | list[str] | str | None = field(default=None, metadata={"help": "modules to adapt"})
    exclude_modules: set[str] | list[str] | str | None = field(default=None, metadata={"help": "modules to leave out"})
    layers_to_transform: list[int] | int | None = field(default=None, metadata={"help": "layers to adapt"})
    layers_pattern: list[str] | str | None = field(default=None, metadata={"help": "name of the list of layers"})
    modules_to_save: list[str] | None = field(default=None, metadata={"help": "other modules to train and save whole"})
    weight_sizes: dict[str, list[int]] = field(
        default_factory=dict, metadata={"help": "sizes of the adapted weights, written when the adapter is made"}
    )

    def __post_init__(self) -> None:
        settle_fields(self, LORETTA_REP)
        super().__post_init__()  # type: ignore[no-untyped-call]
        require_fields(
            self,
            r=(is_size, "a positive integer"),
            tt_rank=(is_size, "a positive integer"),
            alpha=(is_number, "a finite number"),
            dropout=(lambda value: is_number(value) and 0 <= value < 1, "from 0 up to, but not, 1"),
            core_size=(lambda value: value is None or (is_number(value) and value > 0), "a positive number or None"),
            init_weights=(lambda value: isinstance(value, bool), "True or False"),
            train_layer_norms=(lambda value: isinstance(value, bool), "True or False"),
            shape=(lambda value: value == "auto" or isinstance(value, dict), "'auto' or a dict of dims"),
            weight_sizes=(_are_sizes, "a dict from patterns of module names to [out, in]"),
        )
        if isinstance(self.shape, dict):
            self.shape = by_size("shape", self.shape)
            for dims in self.shape.values():
                if not isinstance(dims, list | tuple) or len(dims) > LARGEST_ORDER or not all(map(is_size, dims)):
                    raise ValueError(
                        f"shape has {short_repr(dims)}, and not a list of up to {LARGEST_ORDER} positive integers"
                    )


def resolve_factors(
    config: LorettaRepConfig, module_name: str, out_features: int, in_features: int
) -> LorettaRepUpdate:
    """The trains of the two factors of a module's update.

    Args:
        config: The adapter's config.
        module_name: The module's name in the model.
        out_features: Rows of its weight.
        in_features: Columns of its weight.

    Raises:
        ValueError: A shape does not fit a factor, or is larger than that needs, or the config was written for weights
            of another size; the message names the module.
    """
    out_before, in_before = look_up(config.weight_sizes, module_name, [out_features, in_features])
    if (out_before, in_before) != (out_features, in_features):
        raise ValueError(
            f"{module_name} is {out_features} x {in_features}, but this adapter was made for a model in which it is "
            f"{out_before} x {in_before}: load it into that model"
        )
    if config.r > min(out_features, in_features):
        raise ValueError(
            f"{module_name}: r={config.r} is more than the rank of its {out_features} x {in_features} weight; lower r"
        )
    with named(module_name):
        rows, columns = (_factor_shape(config, size) for size in (out_features, in_features))
        return LorettaRepUpdate(
            Update(rows, config.alpha / config.r, config.core_size), Update(columns, core_size=config.core_size)
        )


def write_shapes(config: LorettaRepConfig, updates: dict[str, LorettaRepUpdate]) -> None:
    """Write the sizes of the weights, and what "auto" came to, into the config of an adapter.

    It then says by itself what the saved entries mean, and no later choice of "auto" changes the adapter.

    Args:
        config: The adapter's config.
        updates: Module name to its update, for all modules that the config adapts.

    Raises:
        ValueError: The config has dims for a number of rows that no factor has.
    """
    shapes = {name: (update.rows.shape, update.columns.shape) for name, update in updates.items()}
    config.weight_sizes = by_pattern({name: [B.out_features, A.out_features] for name, (B, A) in shapes.items()})
    written = {str(factor.out_features): list(factor.dims) for pair in shapes.values() for factor in pair}
    if isinstance(config.shape, dict) and (unused := config.shape.keys() - written.keys()):
        raise ValueError(
            f"shape has dims for {', '.join(sorted(unused))} rows, but the factors have {', '.join(written)}: name "
            "these"
        )
    config.shape = written


def _factor_shape(config: LorettaRepConfig, rows: int) -> TTShape:
    dims: Any = config.shape.get(str(rows), "auto") if isinstance(config.shape, dict) else config.shape
    shape = TTShape.build(rows, config.r, dims, config.tt_rank)
    return require_saving(shape, f"tt_rank={config.tt_rank}", rows * config.r, "factor")


def _are_sizes(value: object) -> bool:
    if not isinstance(value, dict):
        return False
    for pattern in value:
        require_pattern("weight_sizes", pattern, MATCHED_AS)
    return all(isinstance(size, list | tuple) and len(size) == 2 and all(map(is_size, size)) for size in value.values())
