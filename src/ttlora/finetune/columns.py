"""Which columns hold what, where nobody has said so and their names are the usual ones."""

from dataclasses import replace
from typing import Any

from ttlora.finetune.data import first_row
from ttlora.finetune.recipe import Recipe
from ttlora.values import shown

# the columns of data sets that language models learn from, and what they mean
USUAL: tuple[tuple[tuple[str, ...], dict[str, Any]], ...] = (
    (("messages",), {"text_column": "messages", "label_kind": "generation"}),
    (("conversations",), {"text_column": "conversations", "label_kind": "generation"}),
    (("chosen", "rejected"), {"label_kind": "preference"}),
    (("prompt", "completion"), {"text_column": "prompt", "label_column": "completion", "label_kind": "generation"}),
    (
        ("instruction", "input", "output"),
        {"prompt": "{instruction}\n{input}", "label_column": "output", "label_kind": "generation"},
    ),
    (("instruction", "output"), {"text_column": "instruction", "label_column": "output", "label_kind": "generation"}),
    (("question", "answer"), {"text_column": "question", "label_column": "answer", "label_kind": "generation"}),
)


def with_usual_columns(recipe: Recipe) -> Recipe:
    """The recipe, with the columns and the label kind that its training rows show by their names.

    A recipe that names any of them, or whose rows have the columns text and label, is left as it is.

    Raises:
        UserError: The training rows cannot be read.
    """
    return replace(recipe, **usual_columns(recipe)) if asks_for_columns(recipe) else recipe


def asks_for_columns(recipe: Recipe) -> bool:
    """Whether a recipe has rows of its own, and does not say which columns they have."""
    said = (recipe.text_column, recipe.text_pair_column, recipe.label_column, recipe.label_kind, recipe.prompt)
    return recipe.task == "file" and recipe.train is not None and all(value is None for value in said)


def usual_columns(recipe: Recipe) -> dict[str, Any]:
    """The keys of a recipe that the names of its training rows' columns tell.

    Raises:
        UserError: The training rows cannot be read.
    """
    columns = first_row(recipe).keys()
    if {"text", "label"} <= columns:
        return {}
    keys = next((keys for names, keys in USUAL if columns >= set(names)), {})
    return {"label_kind": "text"} if set(columns) == {"text"} else keys


def told_columns(recipe: Recipe) -> str:
    """What the names of the columns were taken to mean."""
    names = ("label_kind", "prompt", "text_column", "label_column", "choice_columns")
    told = [f"{name} {shown(value)}" for name in names if (value := getattr(recipe, name)) is not None]
    return f"by the names of the columns: {', '.join(told)}"
