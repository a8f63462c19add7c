"""Spaces by name: those that the paper searched (Anjum et al. 2024, Table III), and one for any model."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from ttlora.experiments.search.domains import Choices, Domain, Range
from ttlora.finetune.methods import Method

ALPHAS = (1.0, 2.0, 4.0, 8.0, 10.0, 12.0, 16.0, 32.0)
LEARNING_RATES = (1e-5, 5e-5, 1e-4, 5e-4)


@dataclass(frozen=True)
class Preset:
    """What the paper searched for a family of models.

    Attributes:
        name: What it is called.
        targets: Names of the modules that it adapts.
        out_features: Rows of the matrices that the shapes are for.
        in_features: Their columns.
        shapes: The dims as printed, whether they fit or not.
        ranks: TT-ranks.
    """

    name: str
    targets: tuple[str, ...]
    out_features: int
    in_features: int
    shapes: tuple[tuple[int, ...], ...]
    ranks: tuple[int, ...]

    @property
    def domains(self) -> dict[str, Domain]:
        """The space, with the shapes as printed."""
        return {
            "shape": Choices(tuple(map(list, self.shapes))),
            "r": Choices(self.ranks),
            "alpha": Choices(ALPHAS),
            "learning_rate": Choices(LEARNING_RATES),
        }


PRESETS: Mapping[str, Preset] = {
    preset.name: preset
    for preset in (
        Preset(
            "deberta",
            ("in_proj",),
            2304,
            768,
            (
                (64, 36, 12, 64),
                (32, 12, 3, 4, 12, 32),
                (12, 8, 8, 3, 8, 8, 12),
                (32, 16, 2, 3, 3, 3, 2, 32),
                (32, 4, 2, 2, 2, 3, 3, 3, 2, 32),
                (16, 2, 4, 2, 2, 2, 3, 3, 3, 2, 2, 16),
            ),
            (5, 8, 10, 12, 16),
        ),
        Preset(
            "roberta",
            ("query", "value"),
            768,
            768,
            (
                (64, 16, 9, 64),
                (12, 8, 8, 8, 8, 12),
                (12, 8, 8, 2, 4, 8, 12),
                (12, 8, 8, 2, 2, 2, 8, 12),
                (8, 6, 2, 2, 4, 4, 2, 2, 6, 8),
                # half the entries of the matrix
                (8, 6, 2, 2, 2, 2, 2, 2, 2, 6, 8),
            ),
            (5, 8, 10, 12, 16),
        ),
        Preset(
            "llama",
            ("q_proj", "v_proj"),
            4096,
            4096,
            (
                (128, 32, 32, 128),
                (16, 16, 16, 16, 16, 16),
                (16, 16, 4, 4, 4, 4, 16, 16),
                (16, 8, 4, 4, 2, 2, 4, 4, 8, 16),
                (16, 4, 4, 4, 2, 2, 2, 2, 4, 4, 4, 16),
            ),
            (1, 2, 4, 5, 8, 10, 12, 16),
        ),
    )
}


def auto_space(method: str, way: Method) -> dict[str, Domain | Literal["auto"]]:
    """The space for any model: what the method reads of shape, rank and α, and the learning rate.

    The learning rate goes from a tenth to five times the method's own, which for tt-lora is 1e-4 to 5e-3.

    Args:
        method: Its name.
        way: The method.
    """
    rate = way.defaults["learning_rate"]
    space: dict[str, Domain | Literal["auto"]] = {
        "shape": "auto",
        "r": Choices((1, 2, 4, 5, 8, 12, 16)),
        "alpha": Choices((1.0, 2.0, 4.0, 8.0, 16.0)),
        "learning_rate": Range(float(f"{rate / 10:.2e}"), float(f"{rate * 5:.2e}"), "log"),
    }
    read = {"learning_rate", *way.defaults} - (set() if method == "tt-lora" else {"shape"})
    return {key: domain for key, domain in space.items() if key in read}
