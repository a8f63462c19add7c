"""What the configs of methods have in common whose parameters serve many layers at once."""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from peft import PeftConfig
from peft.utils import PeftType

from ttlora.tuners.checks import is_size, require_fields, settle_fields
from ttlora.tuners.shared.update import OwnUpdate, SharedUpdate
from ttlora.values import is_number

Sizes = Mapping[str, Sequence[int]]


@dataclass
class SharedConfig(PeftConfig):
    """The fields of all of them; see `MetaTTConfig` and `LortaConfig`.

    Raises:
        ValueError: A value is not one of those that a field can have.
    """

    method: ClassVar[PeftType]

    r: int = field(default=8, metadata={"help": "rank of the update of each weight"})
    alpha: float = field(default=4.0, metadata={"help": "scale of the update"})
    dropout: float = field(default=0.0, metadata={"help": "dropout probability of the adapter's input"})
    init_weights: bool = field(default=True, metadata={"help": "True: zero update; False: random"})
    target_modules: set[str] | list[str] | str | None = field(default=None, metadata={"help": "modules to adapt"})
    exclude_modules: set[str] | list[str] | str | None = field(default=None, metadata={"help": "modules to leave out"})
    layers_to_transform: list[int] | int | None = field(default=None, metadata={"help": "layers to adapt"})
    layers_pattern: list[str] | str | None = field(default=None, metadata={"help": "name of the list of layers"})
    modules_to_save: list[str] | None = field(default=None, metadata={"help": "other modules to train and save whole"})
    weight_sizes: dict[str, list[int]] = field(
        default_factory=dict, metadata={"help": "sizes of the adapted weights, written when the adapter is made"}
    )

    def __post_init__(self) -> None:
        settle_fields(self, self.method)
        super().__post_init__()  # type: ignore[no-untyped-call]
        require_fields(
            self,
            r=(is_size, "a positive integer"),
            alpha=(is_number, "a finite number"),
            dropout=(lambda value: is_number(value) and 0 <= value < 1, "from 0 up to, but not, 1"),
            init_weights=(lambda value: isinstance(value, bool), "True or False"),
            weight_sizes=(_are_sizes, "a dict from names of modules to [out, in]"),
        )

    @abstractmethod
    def own_updates(self, sizes: Sizes) -> dict[str, OwnUpdate]:
        """What the adapter's entries mean for each weight.

        Args:
            sizes: ``[out, in]`` of the adapted weights by the paths of their modules, in any order.

        Returns:
            The updates by the paths, those of a group one after the other, and in it in the order of the paths.

        Raises:
            ValueError: They do not fit the config; the message names a module.
        """

    def saved_groups(self) -> dict[str, dict[str, OwnUpdate]]:
        """What the entries of a saved adapter mean, from its config alone.

        Returns:
            For each group, by the module that the file of entries names it by, which is its first: the update of each
            of its modules.

        Raises:
            ValueError: The config does not say how large the weights are, or does not fit them.
        """
        if not self.weight_sizes:
            raise ValueError("the config does not say what it adapts: it is not that of a saved adapter")
        groups: dict[SharedUpdate, dict[str, OwnUpdate]] = {}
        for module, update in self.own_updates(self.weight_sizes).items():
            groups.setdefault(update.shared, {})[module] = update
        return {next(iter(updates)): updates for updates in groups.values()}


def _are_sizes(value: Any) -> bool:
    return isinstance(value, dict) and all(
        isinstance(module, str) and isinstance(size, list | tuple) and len(size) == 2 and all(map(is_size, size))
        for module, size in value.items()
    )
