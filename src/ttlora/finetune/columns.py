"""Which columns hold what, where nobody has said so and their names are the usual ones."""

from dataclasses import replace
from typing import Any

from ttlora.finetune.data import first_row
from ttlora.finetune.recipe import Recipe

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
    said = (recipe.text_column, recipe.text_pair_column, recipe.label_column, recipe.label_kind, recipe.prompt)
    if recipe.task != "file" or recipe.train is None or any(value is not None for value in said):
        return recipe
    columns = first_row(recipe).keys()
    if {"text", "label"} <= columns:
        return recipe
    keys = next((keys for names, keys in USUAL if columns >= set(names)), None)
    if keys is None and set(columns) == {"text"}:
        keys = {"label_kind": "text"}
    return recipe if keys is None else replace(recipe, **keys)
