"""What a LoRTA adapter is: its decomposition, its scale and its targets."""

from dataclasses import dataclass, field
from typing import Any, ClassVar

from peft.utils import PeftType

from ttlora.compat import add_peft_type
from ttlora.tuners.checks import is_size, named, require_fields
from ttlora.tuners.lorta.update import CPShape, LortaUpdate
from ttlora.tuners.shared.config import SharedConfig, Sizes
from ttlora.tuners.shared.groups import Group, grouped
from ttlora.tuners.shared.update import OwnUpdate

LORTA = add_peft_type("LORTA")
# parameters that may be there for nothing
SMALL = 2**16


@dataclass
class LortaConfig(SharedConfig):
    """Configuration of LoRTA (arXiv 2410.04060): ``W_{l,m} = W0 + (α / r) concat_h A diag(C_h ∘ C_m ∘ C_l) B``.

    ``A`` (d x r) and ``B`` (d/h x r) serve all heads ``h``, layers ``l`` and types of weights ``m``, which differ by a
    row of a factor each: ``r (d + d/h + h + L + M)`` parameters. The paper knows square weights alone. Here the outputs
    of a weight are divided into blocks of `head_dim`, whatever makes them, and all weights with as many inputs and such
    blocks share one decomposition; a narrower one (key and value of grouped-query attention) uses the first heads. A
    weight whose outputs `head_dim` does not divide is one block. A layer is the first number in a module's path, its
    type the path without it.

    The paper's ``A`` starts as Kaiming's rule says and ``B`` at zero, and so they do here, as LoRA's do. On the sizes
    of the other factors this method decides by itself: of variance one, which keeps the first steps those of a LoRA.

    Args:
        r: Rank of the decomposition, and of the update of each weight.
        alpha: ``α``.
        head_dim: Outputs of a head; None: what the model's config says, or else all outputs are one head. Written into
            the config that is saved.
        dropout: Probability with which entries of the adapter's input are dropped in training.
        init_weights: True: the updates are exactly zero at the start. False: random updates, for tests.
        target_modules: Names (or a regular expression, or "all-linear") of the modules to adapt; None: query and value
            of self-attention, by the model's type. The paper adapts query, key, value and output.
        exclude_modules: Names (or a regular expression) of modules to leave out.
        layers_to_transform: Index or indices of the layers to adapt.
        layers_pattern: Name of the list of layers, where `layers_to_transform` needs it.
        modules_to_save: Other modules to train and save whole, such as a task's head.
        weight_sizes: ``[out, in]`` of the adapted weights by module, written when the adapter is made: which rows of
            the factors are whose follows from it.

    Raises:
        ValueError: A value is not one of those above.
    """

    method: ClassVar[PeftType] = LORTA

    alpha: float = field(default=16.0, metadata={"help": "scale of the update, over r"})
    head_dim: int | None = field(
        default=None, metadata={"help": "outputs of a head; None: what the model's config says"}
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        require_fields(self, head_dim=(lambda value: value is None or is_size(value), "a positive integer or None"))

    def own_updates(self, sizes: Sizes) -> dict[str, OwnUpdate]:
        """What the factors mean for each weight, by the paths of the modules."""
        found = {}
        for key, group in groups_of(self, sizes).items():
            shared = resolve_factors(self, key, group, sizes)
            for module, place in zip(group.modules, group.places, strict=True):
                found[module] = OwnUpdate(shared, place, sizes[module][0])
        return found


def groups_of(config: LortaConfig, sizes: Sizes) -> dict[tuple[int, int], Group]:
    """The weights that share a decomposition, by their inputs and the width of their blocks.

    Args:
        config: The adapter's config.
        sizes: ``[out, in]`` by the paths of modules.
    """

    def key(out_features: int, in_features: int) -> tuple[int, int]:
        width = config.head_dim or out_features
        return in_features, width if out_features % width == 0 else out_features

    return grouped({module: key(*size) for module, size in sizes.items()})


def resolve_factors(config: LortaConfig, key: tuple[int, int], group: Group, sizes: Sizes) -> LortaUpdate:
    """The decomposition of a group.

    Args:
        config: The adapter's config.
        key: Inputs of its weights, and the width of their blocks.
        group: Its modules, layers and types.
        sizes: ``[out, in]`` by the paths of modules.

    Raises:
        ValueError: The factors are larger than the weights; the message names a module.
    """
    in_features, width = key
    rows = [sizes[module][0] for module in group.modules]
    shape = CPShape(width, max(rows) // width, len(group.layers), len(group.types), in_features, config.r)
    with named(group.modules[0]):
        # a rank cannot be clipped as that of a train: where the weights are tiny, the factors may be larger
        if shape.parameters > max(3 * (entries := sum(rows) * in_features), SMALL):
            raise ValueError(
                f"r={config.r} takes {shape.parameters:,} parameters for a group of weights of {entries:,} entries; "
                "lower r"
            )
    return LortaUpdate(shape, config.alpha / config.r)


def head_dim_of(model_config: Any) -> int | None:
    """Outputs of a head of self-attention; None: the model's config does not say.

    Args:
        model_config: The config of a model of transformers, or None.
    """
    text = model_config.get_text_config() if hasattr(model_config, "get_text_config") else model_config
    for name in ("head_dim", "d_kv"):
        found: Any = getattr(text, name, None)
        if is_size(found):
            return int(found)
    width: Any = getattr(text, "hidden_size", None)
    heads: Any = getattr(text, "num_attention_heads", None)
    return width // heads if is_size(width) and is_size(heads) and width >= heads else None
