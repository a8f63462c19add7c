"""What a MetaTT adapter is: its train, its scale and its targets."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from peft.utils import PeftType

from ttlora.compat import add_peft_type
from ttlora.tensor_train import TTShape, Update, even_core_size
from ttlora.tuners.checks import LARGEST_ORDER, by_size, is_size, named, require_fields, require_saving
from ttlora.tuners.meta_tt.update import MetaTTUpdate
from ttlora.tuners.shared.config import SharedConfig, Sizes
from ttlora.tuners.shared.groups import Group, grouped
from ttlora.tuners.shared.update import OwnUpdate
from ttlora.values import is_number, short_repr

META_TT = add_peft_type("META_TT")


@dataclass
class MetaTTConfig(SharedConfig):
    """Configuration of MetaTT (arXiv 2506.09105): ``W_{l,m} = W0 + α G_1 G_2[l] G_3[m] G_4`` for layer l and type m.

    Weights of one size (out, in) share one train, so any model can be adapted: one whose queries are wider than its
    values has a train for either. A layer is the first number in a module's path, its type the path without it. With
    one core for the rows and one for the columns, and more than one layer and type, a train has ``(out + in) r +
    (L + M) r²`` parameters; a mode of one slice is left out. Where weights are missing from the grid of layers and
    types, the cores have slices for the layers and the types that there are.

    The paper says that one core starts at zero and the others near the identity. Here the others start orthonormal, as
    TT-LoRA's do: for the cores between rows and columns that is as good a start, and every layer has one of its own.

    Args:
        r: TT-rank of all bonds. Ranks above what an unfolding can have are clipped, which loses nothing.
        alpha: ``α``.
        shape: None: one core for all rows and one for all columns, as in the paper. "auto": cores over near-equal dims
            of about 16 at most, as in TT-LoRA. Or dims by the number of rows or columns, from the outside of the train
            inwards, such as ``{"768": [8, 8, 12]}``; what is not named there gets one core.
        joint: One core with a slice for each pair of layer and type, in the place of ``G_2`` and ``G_3``: that is LoTR
            (``2 d r + L M r²`` parameters).
        ranks: TT-ranks of the inner bonds by the size of the weights, such as ``{"768x768": [8, 4, 8]}``, in the place
            of `r`; ``ttlora round`` writes them.
        core_size: As in `TTLoraConfig`; it is part of what saved cores mean.
        dropout: Probability with which entries of the adapter's input are dropped in training.
        init_weights: True: the updates are exactly zero at the start. False: random updates, for tests.
        target_modules: Names (or a regular expression, or "all-linear") of the modules to adapt; None: query and value
            of self-attention, by the model's type.
        exclude_modules: Names (or a regular expression) of modules to leave out.
        layers_to_transform: Index or indices of the layers to adapt.
        layers_pattern: Name of the list of layers, where `layers_to_transform` needs it.
        modules_to_save: Other modules to train and save whole, such as a task's head.
        weight_sizes: ``[out, in]`` of the adapted weights by module, written when the adapter is made: which slices are
            whose follows from it.

    Raises:
        ValueError: A value is not one of those above.
    """

    method: ClassVar[PeftType] = META_TT

    shape: str | dict[str, list[int]] | None = field(
        default=None, metadata={"help": "None: one core a side; 'auto', or dims by number of rows or columns"}
    )
    joint: bool = field(default=False, metadata={"help": "one core for all pairs of layer and type: LoTR"})
    ranks: dict[str, list[int]] = field(
        default_factory=dict, metadata={"help": "inner TT-ranks by size of the weights"}
    )
    core_size: float | Literal["even"] | None = field(
        default="even", metadata={"help": "root mean square of the cores' entries at the start"}
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        require_fields(
            self,
            shape=(lambda value: value in ("auto", None) or isinstance(value, dict), "'auto', a dict of dims or None"),
            joint=(lambda value: isinstance(value, bool), "True or False"),
            ranks=(_are_ranks, "a dict from sizes such as '768x768' to lists of positive integers"),
            core_size=(
                lambda value: value in ("even", None) or (is_number(value) and value > 0),
                "'even', a positive number or None",
            ),
        )
        if isinstance(self.shape, dict):
            self.shape = by_size("shape", self.shape)
            for dims in self.shape.values():
                if not _are_sizes(dims):
                    raise ValueError(f"shape has {short_repr(dims)}, and not a list of up to {LARGEST_ORDER} dims")

    def own_updates(self, sizes: Sizes) -> dict[str, OwnUpdate]:
        """What the cores mean for each weight, by the paths of the modules."""
        found = {}
        for size, group in groups_of(sizes).items():
            shared = resolve_train(self, size, group)
            places = range(len(group.modules)) if self.joint else group.places
            for module, place in zip(group.modules, places, strict=True):
                found[module] = OwnUpdate(shared, place, size[0])
        return found

    def saved_train(self, name: str) -> Update:
        """The train of a group of a saved adapter, and what its cores mean.

        Args:
            name: The module that the file names the cores by.

        Raises:
            ValueError: The config does not say how large the weights are, or does not fit them.
        """
        shared = self.saved_groups()[name][name].shared
        assert isinstance(shared, MetaTTUpdate)
        return shared.train

    def size_of(self, module: str) -> str:
        """The size of a weight of a saved adapter, as `ranks` names it.

        Args:
            module: Its module.
        """
        return "x".join(map(str, self.weight_sizes[module]))


def groups_of(sizes: Sizes) -> dict[tuple[int, int], Group]:
    """The weights of each size.

    Args:
        sizes: ``[out, in]`` by the paths of modules.
    """
    return grouped({module: (out, in_) for module, (out, in_) in sizes.items()})


def resolve_train(config: MetaTTConfig, size: tuple[int, int], group: Group) -> MetaTTUpdate:
    """The train of a group.

    Args:
        config: The adapter's config.
        size: ``(out, in)`` of the weights of the group.
        group: Its modules, layers and types.

    Raises:
        ValueError: The shape or the ranks do not fit; the message names a module.
    """
    out_features, in_features = size
    modes = [len(group.modules)] if config.joint else [len(group.layers), len(group.types)]
    places = math.prod(modes)
    r: int | list[int] = config.ranks.get("x".join(map(str, size)), config.r)
    with named(group.modules[0]):
        rows, columns = _dims(config.shape, out_features), _dims(config.shape, in_features)
        modes = [slices for slices in modes if slices > 1]
        dims = [*rows, *modes, *reversed(columns)]
        shape = TTShape.build(out_features * places, in_features, dims, r)
        require_saving(shape, f"r={r}", out_features * places * in_features, "group of weights")
        core_size = even_core_size(shape) if config.core_size == "even" else config.core_size
        return MetaTTUpdate(Update(shape, config.alpha, core_size), tuple(modes))


def _dims(shape: str | Mapping[str, Sequence[int]] | None, features: int) -> list[int]:
    """The dims of rows or columns, from the outside of the train inwards."""
    if shape == "auto":
        return list(TTShape.build(features, 1, "auto").dims)[:-1]
    dims = shape.get(str(features), [features]) if isinstance(shape, Mapping) else [features]
    if math.prod(dims) != features:
        raise ValueError(f"shape {list(dims)} has the product {math.prod(dims):,}, and not {features:,}")
    return list(dims)


def _are_sizes(value: Any) -> bool:
    return isinstance(value, list | tuple) and 0 < len(value) <= LARGEST_ORDER and all(map(is_size, value))


def _are_ranks(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(size, str) and _are_sizes(ranks) for size, ranks in value.items())
