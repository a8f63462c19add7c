"""What a TT-LoRA adapter is: its shapes, ranks, scale and targets."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Literal, Self

from peft import LoraConfig, PeftConfig

from ttlora.compat import add_peft_type, look_up
from ttlora.tensor_train import TTShape, Update, even_core_size
from ttlora.tensor_train.difference import Difference
from ttlora.tuners.checks import (
    LARGEST_ORDER,
    is_name_list,
    is_size,
    named,
    require_fields,
    require_pattern,
    require_saving,
    settle_fields,
)
from ttlora.tuners.tt_lora.from_lora import options_of_lora, refuse_loras_options
from ttlora.values import is_number, short_repr

TTLORA = add_peft_type("TTLORA")
KINDS = ("linear", "embedding", "convolution", "attention", "parameter")
SCALINGS = ("alpha", "alpha/r", "alpha/sqrt(r)")
# Of "even" for DoTA: a train that starts as the weight changes the model by every turn, from the first step on.
STEADIER = 3
# PEFT puts patterns into this when it matches them with names.
MATCHED_AS = r"(.*\.)?({})$"


@dataclass
class TTLoraConfig(PeftConfig):
    """Configuration of TT-LoRA (Anjum et al. 2024): ``W = W0 + α ΔW``, with ``ΔW`` a tensor train.

    A drop-in for `LoraConfig`: the defaults train well at the learning rates that LoRA is trained with (2e-4 to 1e-3).

    Args:
        r: TT-rank of all bonds, or the ``d - 1`` ranks of the inner bonds. Ranks above what an unfolding can have are
            clipped, which loses nothing.
        alpha: ``α`` of Eq. 3, used as `scaling` says.
        shape: "auto" (near-equal dims of about 16 at most, rows first), or the dims ``k_1 ... k_d``, with the product
            ``out x in`` of every adapted weight. What "auto" chose is written into the config that is saved.
        shape_pattern: Shapes for modules that need another: name or regular expression to dims or "auto".
        rank_pattern: Likewise for `r`.
        alpha_pattern: Likewise for `alpha`.
        scaling: What multiplies ``ΔW``: "alpha" (the paper's), "alpha/r" or "alpha/sqrt(r)", with its largest rank.
        dropout: Probability with which entries of the adapter's input are dropped in training; embeddings and
            ``nn.MultiheadAttention`` have no such input, and parameters refuse it.
        init_weights: True: the update is exactly zero at the start. False: a random update, for tests. "paper": the
            cores of a Gaussian ``ΔW`` by TT-SVD, which changes the model before the first step and takes a dense SVD.
            "dota": the cores of ``W0`` by TT-SVD, with ``ΔW = α (train - train at the start)`` (DoTA, Hu et al. 2024;
            `ttlora.tensor_train.start.pretrained_update`), exactly zero at the start. The paper's residual ``W0 -
            train at the start`` is never formed, so that the base model stays what it was, merged or disabled, and
            further adapters may join. The start is saved beside the cores, which the adapter then needs no base model
            to be rebuilt from. A base in 4 bits stays as it was quantised, and the start is that of its dequantised
            weight; QDoTA quantises the residual instead, and can no longer give the plain base back.
        core_size: ``ε``, the root mean square of the cores' entries at the start (see ``ttlora.tensor_train.update``).
            Small entries turn fast under Adam. "even": the ``ε`` at which trains of every shape and rank turn equally
            fast (``ttlora.tensor_train.even_core_size``); 0.02 for two cores a side of rank 5, and three times as much
            with "dota", whose train is no zero at the start and should turn slower. It is part of what saved cores
            mean: leave it as it was trained. The gradient of the cores is not the derivative of the loss then: it is
            divided core by core by a fixed number (docs/learning.md, "The gradient is not the derivative"), which
            second-order optimisers and whoever logs norms of gradients have to know. With None the update is the plain
            train of Eq. 3, as with "paper", and the gradient is the derivative.
        target_modules: Names (or a regular expression, or "all-linear") of the modules to adapt; None: all linear
            layers of the model's body but those of query and key alone, where few parameters serve best
            (docs/learning.md, "Places"). A name that is nothing in the model is refused. Where transformers holds the
            experts' weights stacked, the names of their linear layers (``w1``, ``w2``, ``w3``, or ``gate_proj``,
            ``up_proj``, ``down_proj``; ``gate`` for the router) mean the stacked parameters, as PEFT has it for LoRA.
            `r` is the TT-rank of a stacked weight's train; PEFT doubles LoRA's where two are stacked in one, which for
            a train would be four times the parameters: ``rank_pattern={"experts.gate_up_proj": 10}`` asks for it.
        target_parameters: Names of parameters to adapt that no layer of their own holds, such as the stacked weights
            of experts (``["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]``). One train serves all experts.
        exclude_modules: Names (or a regular expression) of modules to leave out.
        layers_to_transform: Index or indices of the layers to adapt.
        layers_pattern: Name of the list of layers, where `layers_to_transform` needs it.
        modules_to_save: Other modules to train and save whole, such as a task's head.
        bias: Which biases train: "none", "all" or "ttlora_only".
        weight_sizes: ``[out, in]`` of the adapted weights by module name, or ``[experts, out, in]``, written when the
            adapter is made: the file of cores and the config then say all about the update.
        weight_kinds: What kinds of layers were adapted, where not all are linear; written with `weight_sizes`.

    Raises:
        ValueError: A value is not one of those above.
    """

    r: int | list[int] = field(default=2, metadata={"help": "TT-rank, or one for each inner bond"})
    alpha: float = field(default=4.0, metadata={"help": "scale of the update (Eq. 3)"})
    shape: str | list[int] = field(default="auto", metadata={"help": "'auto', or dims with the product out x in"})
    shape_pattern: dict[str, Any] = field(default_factory=dict, metadata={"help": "shapes by module name"})
    rank_pattern: dict[str, Any] = field(default_factory=dict, metadata={"help": "ranks by module name"})
    alpha_pattern: dict[str, float] = field(default_factory=dict, metadata={"help": "alphas by module name"})
    scaling: Literal["alpha", "alpha/r", "alpha/sqrt(r)"] = field(
        default="alpha", metadata={"help": "what multiplies the update"}
    )
    dropout: float = field(default=0.0, metadata={"help": "dropout probability of the adapter's input"})
    init_weights: bool | Literal["paper", "dota"] = field(
        default=True,
        metadata={
            "help": "True: zero update; False: random; 'paper': Gaussian update by TT-SVD; "
            "'dota': the pretrained weight by TT-SVD, and what becomes of it"
        },
    )
    core_size: float | Literal["even"] | None = field(
        default="even",
        metadata={"help": "root mean square of the cores' entries at the start; 'even': all shapes turn equally fast"},
    )
    target_modules: set[str] | list[str] | str | None = field(default=None, metadata={"help": "modules to adapt"})
    target_parameters: list[str] | None = field(default=None, metadata={"help": "parameters to adapt"})
    exclude_modules: set[str] | list[str] | str | None = field(default=None, metadata={"help": "modules to leave out"})
    layers_to_transform: list[int] | int | None = field(default=None, metadata={"help": "layers to adapt"})
    layers_pattern: list[str] | str | None = field(default=None, metadata={"help": "name of the list of layers"})
    modules_to_save: list[str] | None = field(default=None, metadata={"help": "other modules to train and save whole"})
    bias: str = field(default="none", metadata={"help": "'none', 'all' or 'ttlora_only'"})
    weight_sizes: dict[str, list[int]] = field(
        default_factory=dict, metadata={"help": "sizes of the adapted weights, written when the adapter is made"}
    )

    weight_kinds: dict[str, str] = field(
        default_factory=dict, metadata={"help": "kinds of the adapted layers, written when the adapter is made"}
    )

    def __new__(cls, *_: Any, **options: Any) -> Self:
        """Refuse LoRA's options by name, for which a dataclass would only say that it does not know them."""
        refuse_loras_options(options.keys() - {item.name for item in fields(cls)})
        return super().__new__(cls)

    @classmethod
    def from_lora(cls, lora: LoraConfig, **options: Any) -> Self:
        """A config that adapts what a LoRA config adapts.

        Targets, layers, dropout, biases, modules saved whole and the task's type are taken over; ranks and scales are
        those of another method, and stay at TT-LoRA's defaults.

        Args:
            lora: The LoRA config.
            options: Fields of this config, which go before what is taken over.

        Raises:
            TypeError: An option is LoRA's.
            ValueError: The LoRA config asks for what TT-LoRA does not have, such as DoRA.

        Examples:
            >>> from peft import LoraConfig
            >>> from ttlora import TTLoraConfig
            >>> config = TTLoraConfig.from_lora(LoraConfig(target_modules=["q_proj"], lora_dropout=0.1), r=3)
            >>> config.target_modules, config.dropout, config.r
            ({'q_proj'}, 0.1, 3)
        """
        return cls(**{**options_of_lora(lora), **options})

    def __post_init__(self) -> None:
        settle_fields(self, TTLORA)
        super().__post_init__()  # type: ignore[no-untyped-call]
        for name in ("shape_pattern", "rank_pattern", "alpha_pattern", "weight_sizes", "weight_kinds"):
            _check_patterns(name, getattr(self, name))
        for patterns, default, check in (
            ("rank_pattern", self.r, _check_rank),
            ("shape_pattern", self.shape, _check_shape),
            ("alpha_pattern", self.alpha, _check_alpha),
        ):
            check(default)
            for pattern, value in getattr(self, patterns).items():
                try:
                    check(value)
                except ValueError as error:
                    raise ValueError(f"{patterns} for {short_repr(pattern)}: {error}") from None
        require_fields(
            self,
            scaling=(lambda value: value in SCALINGS, f"one of {', '.join(map(repr, SCALINGS))}"),
            dropout=(lambda value: is_number(value) and 0 <= value < 1, "a probability from 0 up to, but not, 1"),
            init_weights=(
                lambda value: isinstance(value, bool) or value in ("paper", "dota"),
                "one of True, False, 'paper', 'dota'",
            ),
            core_size=(
                lambda value: value in ("even", None) or (is_number(value) and value > 0),
                "'even', a positive number or None",
            ),
            target_parameters=(lambda value: value is None or is_name_list(value), "a list of names"),
            bias=(lambda value: value in ("none", "all", "ttlora_only"), "one of 'none', 'all', 'ttlora_only'"),
        )
        if self.init_weights == "paper":
            self.core_size = None
        if self.target_parameters is not None:
            self.target_parameters = list(dict.fromkeys(self.target_parameters))
        if unknown := [kind for kind in self.weight_kinds.values() if kind not in KINDS]:
            raise ValueError(f"weight_kinds has {short_repr(unknown[0])}, which is none of {', '.join(KINDS)}")
        for size in self.weight_sizes.values():
            if not isinstance(size, list | tuple) or len(size) not in (2, 3) or not all(map(is_size, size)):
                raise ValueError(f"weight_sizes has {short_repr(size)}, and not [out, in] or [experts, out, in]")


def resolve_update(
    config: TTLoraConfig, module_name: str, out_features: int, in_features: int, experts: int | None = None
) -> Update:
    """What the cores of a module mean: its shape, rank and α from the config's patterns, or else the config's own.

    Args:
        config: The adapter's config.
        module_name: The module's name in the model.
        out_features: Rows of its weight, or of each expert's.
        in_features: Columns of its weight, or of each expert's.
        experts: How many experts' weights are stacked; None: it is one weight.

    Raises:
        ValueError: The shape or the ranks do not fit the weight, or the config was written for weights of another size;
            the message names the module; or the train would be larger than any of that weight needs to be.
    """
    dims = look_up(config.shape_pattern, module_name, config.shape)
    r = look_up(config.rank_pattern, module_name, config.r)
    actual = [out_features, in_features] if experts is None else [experts, out_features, in_features]
    sizes = look_up(config.weight_sizes, module_name, actual)
    if list(sizes) != actual:
        raise ValueError(
            f"{module_name} is {_product(actual)}, but this adapter was made for a model in which it is "
            f"{_product(sizes)}: load it into that model"
        )
    alpha = look_up(config.alpha_pattern, module_name, config.alpha)
    with named(module_name):
        if experts is None:
            shape = TTShape.build(out_features, in_features, dims, r)
        else:
            shape = TTShape.build_experts(experts, out_features, in_features, dims, r)
        require_saving(shape, f"r={r}", math.prod(actual), "weight")
        divisor = {"alpha": 1.0, "alpha/r": max(shape.ranks), "alpha/sqrt(r)": math.sqrt(max(shape.ranks))}
        from_pretrained = config.init_weights == "dota"
        core_size = config.core_size
        if core_size == "even":
            core_size = even_core_size(shape) * (STEADIER if from_pretrained else 1)
        kind = Difference if from_pretrained else Update
        return kind(shape, alpha / divisor[config.scaling], core_size)


def saved_update(config: TTLoraConfig, module_name: str) -> Update:
    """What the cores of a module mean, from the config of a saved adapter alone.

    Args:
        config: The saved config.
        module_name: The module's name in the file of cores, without PEFT's prefix.

    Raises:
        ValueError: The config does not say how large the weight is, or its shape or ranks do not fit.
    """
    *experts, out_features, in_features = saved_sizes(config, module_name)
    return resolve_update(config, saved_name(config, module_name), out_features, in_features, *experts)


def saved_name(config: TTLoraConfig, module: str) -> str:
    """The name by which a config's patterns know a module of a saved adapter.

    The wrappers of several parameters of one module are saved inside one another, as ``module``, ``module.base_layer``
    and so on, in the order of the saved config's ``target_parameters``.
    """
    path, depth = module.replace(".base_layer", ""), module.count(".base_layer")
    targets = [target.rpartition(".") for target in config.target_parameters or ()]
    parameters = [parameter for owner, _, parameter in targets if f".{path}".endswith(f".{owner}")]
    return f"{path}.{parameters[depth]}" if depth < len(parameters) else path


def saved_sizes(config: TTLoraConfig, module: str) -> list[int]:
    """The sizes of a saved module's weight: ``[out, in]`` or ``[experts, out, in]``.

    Raises:
        ValueError: The config does not say them.
    """
    name = saved_name(config, module)
    sizes: list[int] | None = look_up(config.weight_sizes, name, None)
    if sizes is None:
        raise ValueError(f"the config does not say the size of {name}: it is not that of a saved adapter")
    return sizes


def saved_kind(config: TTLoraConfig, module: str) -> str:
    """What a module of a saved adapter is: "linear", "embedding", "convolution", "attention" or "parameter"."""
    kind: str = look_up(config.weight_kinds, saved_name(config, module), "linear")
    return kind


def write_shapes(
    config: TTLoraConfig, shapes: dict[str, TTShape], sizes: dict[str, list[int]], kinds: dict[str, str]
) -> None:
    """Write the sizes of the weights, and what every "auto" came to, into the config of an adapter.

    It then says by itself what the saved cores mean, and no later choice of "auto" changes the adapter.

    Args:
        config: The adapter's config.
        shapes: Module name to the shape of its train, for all modules that the config adapts.
        sizes: Module name to ``[out, in]`` or ``[experts, out, in]``.
        kinds: Module name to the kind of its layer.
    """
    config.weight_sizes = by_pattern(sizes)
    if any(kind != "linear" for kind in kinds.values()):
        config.weight_kinds = by_pattern(kinds)
    if config.shape == "auto" or "auto" in config.shape_pattern.values():
        patterns = by_pattern({name: asked_dims(shape, len(sizes[name]) == 3) for name, shape in shapes.items()})
        dims = list(patterns.values())
        if dims and not config.shape_pattern and all(other == dims[0] for other in dims):
            config.shape = dims[0]
        else:
            config.shape_pattern = patterns


def asked_dims(shape: TTShape, of_experts: bool) -> list[int]:
    """The dims as a config names them: without the expert's index, the last that runs over rows.

    Args:
        shape: The shape of a train.
        of_experts: Whether it is that of a stack of experts.
    """
    if not of_experts:
        return list(shape.dims)
    assert shape.boundary is not None, "the expert's index stands at the boundary"
    return [*shape.dims[: shape.boundary - 1], *shape.dims[shape.boundary :]]


def by_pattern(values: dict[str, Any]) -> dict[str, Any]:
    """The values by the last part of the module's name where all that share it agree, or else by the whole name.

    A pattern hits every name that ends with it; a whole name is held to its beginning, or ``fc`` would be ``layer.fc``.
    """
    by_part: dict[str, list[Any]] = {}
    for name, value in values.items():
        by_part.setdefault(name.rpartition(".")[2], []).append(value)
    agreed = {part for part, found in by_part.items() if all(value == found[0] for value in found)}

    def pattern(name: str) -> str:
        part = name.rpartition(".")[2]
        return re.escape(part) if part in agreed else f"^{re.escape(name)}"

    return {pattern(name): value for name, value in values.items()}


def _product(sizes: Sequence[int]) -> str:
    return " x ".join(map(str, sizes))


def _check_patterns(name: str, patterns: object) -> None:
    if not isinstance(patterns, dict):
        raise ValueError(f"{name}={short_repr(patterns)} is not a dict from module names to values")
    for pattern in patterns:
        require_pattern(name, pattern, MATCHED_AS)


def _check_rank(r: object) -> None:
    ranks = r if isinstance(r, list | tuple) else [r]
    if not ranks or len(ranks) > LARGEST_ORDER or not all(map(is_size, ranks)):
        raise ValueError(f"r={short_repr(r)} is neither a positive integer nor a list of up to {LARGEST_ORDER} of them")


def _check_alpha(alpha: object) -> None:
    if not is_number(alpha):
        raise ValueError(f"alpha={short_repr(alpha)} is not a finite number")


def _check_shape(shape: object) -> None:
    if shape == "auto":
        return
    if not isinstance(shape, list | tuple):
        raise ValueError(f"shape={short_repr(shape)} is neither 'auto' nor a list of positive integers")
    if len(shape) > LARGEST_ORDER:
        raise ValueError(f"shape has {len(shape):,} dims; {LARGEST_ORDER} are the most")
    if not all(map(is_size, shape)):
        raise ValueError(f"shape={short_repr(shape)} is neither 'auto' nor a list of positive integers")
