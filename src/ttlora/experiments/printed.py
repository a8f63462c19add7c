"""The parameter counts that the paper prints, and what explains where ours differ.

Source: A. Anjum, M. E. Eren, I. Boureima, B. Alexandrov and M. Bhattarai, arXiv 2408.01008, Tables I and II.
"""

from dataclasses import dataclass

# hub names of the models of recipes that are shipped, as architectures that are built in
PUBLISHED = {
    "microsoft/deberta-base": "deberta-base",
    "FacebookAI/roberta-base": "roberta-base",
    "meta-llama/Llama-2-7b-hf": "llama2-7b",
    "meta-llama/Meta-Llama-3-8B": "llama3-8b",
    "meta-llama/Llama-3.2-3B": "llama3.2-3b",
}


@dataclass(frozen=True)
class Printed:
    """A count as the paper prints it.

    Attributes:
        text: In millions, as printed.
        r: The rank that the row is for; None: the row names none.
        ours: What we count in its place, where that is another number.
        why: What explains the difference.
    """

    text: str
    r: int | None = None
    ours: int | None = None
    why: str = ""


CLIPPED = "without 18,432 in ranks above what an unfolding can have, which lose nothing"

PRINTED: dict[tuple[str, str], tuple[Printed, ...]] = {
    ("deberta-base", "full"): (Printed("139.19M"),),
    ("deberta-base", "adapter"): (
        Printed("0.94M", 8, 351_936, "with the head of two classes (592,130) it is 944,066"),
    ),
    ("deberta-base", "lora"): (
        Printed("0.30M", 8, 294_912, "with the output layer of two classes (1,538) it is 296,450"),
        Printed("0.15M", 4),
    ),
    ("deberta-base", "p-tuning"): (Printed("0.23M"),),
    ("deberta-base", "prefix"): (Printed("0.15M"),),
    ("deberta-base", "bitfit"): (Printed("0.10M"),),
    ("deberta-base", "loretta-adp"): (Printed("0.10M"),),
    ("deberta-base", "loretta-rep"): (Printed("0.05M"),),
    ("deberta-base", "prompt"): (Printed("0.01M"),),
    ("deberta-base", "tt-lora"): (Printed("0.02M"),),
    ("roberta-base", "full"): (Printed("124M", None, 124_647_939, "without the head (592,899) it is 124,055,040"),),
    ("roberta-base", "lora"): (
        Printed(
            "0.63M",
            8,
            294_912,
            "not explained: for DeBERTa, with as many entries in A and B, 0.30M is printed; query, key, value and "
            "output with all LayerNorms would be 628,224",
        ),
    ),
    ("roberta-base", "bitfit"): (Printed("0.10M"),),
    ("roberta-base", "loretta-adp"): (Printed("0.10M"),),
    ("roberta-base", "tt-lora"): (Printed("0.02M"),),
    ("llama2-7b", "full"): (Printed("6738.42M"),),
    ("llama2-7b", "adapter"): (
        Printed("50.33M", None, 50_866_176, "without biases (268,288) and norms (266,240) it is 50,331,648"),
    ),
    ("llama2-7b", "lora"): (Printed("4.19M", 8),),
    ("llama2-7b", "prefix"): (Printed("1.31M"),),
    ("llama2-7b", "loretta-rep"): (Printed("0.51M", None, 489_472, CLIPPED),),
    ("llama2-7b", "loretta-adp"): (Printed("0.88M", None, 862_208, CLIPPED),),
    ("llama2-7b", "tt-lora"): (Printed("0.1M"),),
    ("llama3-8b", "lora"): (Printed("3.41M", 8),),
    ("llama3-8b", "tt-lora"): (Printed("0.2M"),),
}


def find_printed(model: str, method: str, r: object) -> Printed | None:
    """What the paper prints for a method on a model, or None.

    Args:
        model: A built-in architecture, or a name on the hub.
        method: Name of the method.
        r: Its rank.
    """
    rows = PRINTED.get((PUBLISHED.get(model, model), method), ())
    return next((row for row in rows if row.r in (None, r)), None)


def agrees(count: int, printed: str) -> bool:
    """Whether a count is what was printed, at the digits that were printed."""
    digits = len(printed.removesuffix("M").partition(".")[2])
    return f"{count / 1e6:.{digits}f}M" == printed
