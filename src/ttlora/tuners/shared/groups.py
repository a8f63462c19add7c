"""Which weights one update serves, and which of its slices is whose: layers and types of weights, by their paths."""

from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import TypeVar

NO_LAYER = ""
Key = TypeVar("Key", bound=Hashable)


@dataclass(frozen=True)
class Group:
    """Weights that one update serves.

    Attributes:
        modules: Their paths in the model.
        layers: The layers that they lie in, as their paths number them; "" for what lies in none.
        types: What they are: their paths with ``*`` in the place of the layer's number.
        places: The place of each in the grid of layers and types, types running faster than layers.
    """

    modules: tuple[str, ...]
    layers: tuple[str, ...]
    types: tuple[str, ...]
    places: tuple[int, ...]


def layer_and_type(module: str) -> tuple[str, str]:
    """The layer of a module and its type: the first number in its path, and the path without it.

    Args:
        module: Its path.

    Examples:
        >>> layer_and_type("bert.encoder.layer.3.attention.self.query")
        ('3', 'bert.encoder.layer.*.attention.self.query')
        >>> layer_and_type("pooler.dense")
        ('', 'pooler.dense')
    """
    parts = module.split(".")
    at = next((index for index, part in enumerate(parts) if part.isdecimal()), None)
    if at is None:
        return NO_LAYER, module
    return parts[at], ".".join([*parts[:at], "*", *parts[at + 1 :]])


def in_order(path: str) -> list[tuple[int, str]]:
    """For sorting: layer 2 comes before layer 10."""
    return [(int(part), "") if part.isdecimal() and len(part) < 10 else (-1, part) for part in path.split(".")]


def grouped(keys: Mapping[str, Key]) -> dict[Key, Group]:
    """The groups of modules; they, their modules, layers and types stand in the order of the paths.

    That of ``keys`` would be lost in a config, which PEFT sorts.

    Args:
        keys: Path of each module to what all modules of a group have alike.
    """
    members: dict[Key, list[str]] = {}
    for module in sorted(keys, key=in_order):
        members.setdefault(keys[module], []).append(module)
    groups = {}
    for key, modules in members.items():
        pairs = [layer_and_type(module) for module in modules]
        layers, types = (
            {name: index for index, name in enumerate(dict.fromkeys(names))} for names in zip(*pairs, strict=True)
        )
        places = tuple(layers[layer] * len(types) + types[type_] for layer, type_ in pairs)
        groups[key] = Group(tuple(modules), tuple(layers), tuple(types), places)
    return groups
