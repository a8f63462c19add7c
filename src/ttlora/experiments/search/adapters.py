"""The adapters of a search, and how large each is, from the model's architecture alone."""

from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field
from itertools import product
from typing import Any

from ttlora.errors import UserError
from ttlora.experiments.counts import count_trained, skeleton_of
from ttlora.experiments.search.config import SearchPlan
from ttlora.experiments.search.domains import Choices, Domain
from ttlora.experiments.search.shapes import Sizes, adapted_sizes, build_trains, fit_preset, generate_shapes
from ttlora.planner.matrices import BYTES_16BIT

# what of a trial's settings decides the adapter's size
SIZING = ("shape", "r")
# settings of tt-lora that train more than the cores of linear modules
BESIDE_MODULES = ("bias", "target_parameters")


@dataclass(frozen=True)
class Candidate:
    """Settings that a trial can have.

    Attributes:
        settings: Recipe keys with their values.
        parameters: Parameters of the adapter, without the head.
        identity: What makes it another than the others: ranks that are clipped alike make no difference.
    """

    settings: Mapping[str, Any] = field(compare=False)
    parameters: int = field(compare=False)
    identity: Hashable = field(repr=False)

    @property
    def bytes_16bit(self) -> int:
        """Bytes of the adapter's parameters in a 16-bit format."""
        return BYTES_16BIT * self.parameters


def complete(adapter: Candidate, others: Mapping[str, Any]) -> Candidate:
    """A candidate with settings beside those of its adapter."""
    return Candidate({**adapter.settings, **others}, adapter.parameters, (adapter.identity, tuple(others.items())))


def key_of(settings: Mapping[str, Any]) -> str:
    """What tells the settings of an adapter from others."""
    return repr([settings.get(name) for name in SIZING])


def measure_adapters(plan: SearchPlan) -> tuple[dict[str, Domain], dict[str, Candidate], list[str]]:
    """Every combination of shape and rank of a search, with its size.

    Returns:
        The domains of all keys, with the shapes that fit the model; the adapters by the key of their settings; and what
        was left out.

    Raises:
        UserError: The model is not there, or no shape fits it, or one of the user's does not.
    """
    recipe = plan.recipe({})
    sizes = adapted_sizes(recipe) if recipe.method == "tt-lora" else {}
    shapes, notes = _fit_shapes(plan, sizes)
    domains = {key: shapes if domain == "auto" or key == "shape" else domain for key, domain in plan.domains.items()}
    counted = not sizes or bool(set(BESIDE_MODULES) & set(recipe.settings or ()))
    names = [name for name in SIZING if name in domains]
    measured = {}
    for values in product(*(domains[name].grid() for name in names)):
        settings = dict(zip(names, values, strict=True))
        recipe = plan.recipe(settings)
        if counted:
            parameters, _ = count_trained(skeleton_of(recipe), recipe)
            candidate = Candidate(settings, parameters, key_of(settings))
        else:
            trains = build_trains(recipe, sizes)
            candidate = Candidate(settings, sum(train.parameters for train in trains), trains)
        measured[key_of(settings)] = candidate
    return domains, measured, notes


def _fit_shapes(plan: SearchPlan, sizes: Sizes) -> tuple[Domain, list[str]]:
    """The shapes that are searched, and those of a preset that are not."""
    domain = plan.domains.get("shape")
    if domain == "auto":
        return Choices(tuple(generate_shapes(sizes))), []
    if domain is None or plan.preset is None:
        return domain or Choices(()), []
    shapes, notes = fit_preset(plan.preset, sizes)
    if not shapes:
        out_features, in_features = next(iter(sizes.values()))
        raise UserError(
            f"no shape of space {plan.preset.name} fits model {plan.shared['model']}, which has matrices of "
            f"{out_features} x {in_features}: use space auto, or name shapes of your own"
        )
    return Choices(tuple(shapes)), notes
