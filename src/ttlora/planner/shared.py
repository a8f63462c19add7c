"""The plan of an adapter whose parameters serve many layers at once: MetaTT or LoRTA."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from ttlora.errors import UserError
from ttlora.planner.matrices import MatrixPlan
from ttlora.planner.targets import adapted_modules, resolve_targets
from ttlora.tuners.lorta import LortaConfig
from ttlora.tuners.lorta.config import head_dim_of
from ttlora.tuners.meta_tt import MetaTTConfig
from ttlora.tuners.shared.config import SharedConfig
from ttlora.tuners.shared.groups import layer_and_type
from ttlora.tuners.targets import query_and_value


@dataclass(frozen=True)
class GroupPlan(MatrixPlan):
    """What the adapter holds for the matrices of a group, which is one plan, however many they are.

    Attributes:
        sizes: Rows and columns of each of them.
    """

    sizes: tuple[tuple[int, int], ...] = ()

    @property
    def size(self) -> tuple[int, int]:
        """Rows and columns of the widest."""
        return max(self.sizes)

    @property
    def dims(self) -> list[int]:
        """The modes, those of layers and types among them."""
        return list(self.shape.dims)

    def lora_parameters(self, r: int) -> int:
        """Parameters of a LoRA on all of them.

        Args:
            r: Its rank.
        """
        return sum(r * (rows + columns) for rows, columns in self.sizes)


def plan_shared(
    skeleton: Any,
    method: Literal["meta-tt", "lorta"],
    shape: str | Sequence[int] | Mapping[str, Sequence[int]] | None,
    r: int | None,
    targets: Sequence[str] | None,
) -> tuple[tuple[MatrixPlan, ...], SharedConfig]:
    """The groups of matrices of such an adapter, and its config.

    Args:
        skeleton: A model.
        method: The method.
        shape: As `MetaTTConfig` takes it.
        r: The rank; None: the config's default.
        targets: Names of targets, or ["all-linear"]; None: query and value.

    Raises:
        UserError: `shape` is given, and the method has none.
        ValueError: Targets, shape or rank do not fit the model.
    """
    options: dict[str, Any] = {} if r is None else {"r": r}
    options["target_modules"] = query_and_value(skeleton) if targets is None else resolve_targets(skeleton, targets)
    config: SharedConfig
    if method == "meta-tt":
        config = MetaTTConfig(shape=shape, **options)  # type: ignore[arg-type]
    elif shape is not None:
        raise UserError("`shape` means nothing to `method` lorta: leave it out")
    else:
        config = LortaConfig(head_dim=head_dim_of(skeleton.config), **options)
    sizes = adapted_modules(skeleton, config)
    groups: dict[Any, list[str]] = {}
    for module, update in config.own_updates(sizes).items():
        groups.setdefault(update.shared, []).append(module)
    plans = [
        GroupPlan(_name(modules), shared.shape, 1, sizes=tuple(sizes[module] for module in modules))
        for shared, modules in groups.items()
    ]
    return tuple(plans), config


def _name(modules: Sequence[str]) -> str:
    layers, types = zip(*map(layer_and_type, modules), strict=True)
    names = ", ".join(dict.fromkeys(type_.rpartition(".")[2] for type_ in types))
    return f"{names} of {len(set(layers))} layers"
