"""The model card of a folder: on what base it stands, how it came about, and how to load it."""

import os
from pathlib import Path
from typing import Any

from ttlora.strict_yaml import dump

CARD = "README.md"


def base_name(base: str) -> str:
    """How a card names a base model: a folder of somebody's machine by its last part alone."""
    return Path(base).name if os.path.isabs(base) else base


def model_card(title: str, base: str, tags: list[str], body: list[str], of_peft: bool = True) -> str:
    """A card in the form that the hub reads.

    Args:
        title: Its heading.
        base: The base model: a name on the hub, or a folder.
        tags: By which the hub finds it.
        body: Paragraphs below the heading.
        of_peft: Whether PEFT loads the folder.
    """
    about: dict[str, Any] = {"tags": tags}
    if of_peft:
        about["library_name"] = "peft"
    if base and not os.path.isabs(base):
        about["base_model"] = base
    return "\n\n".join([f"---\n{dump(about)}---", f"# {title}", *body]) + "\n"


def adapter_card(base: str, peft_type: str, how: str, size: int) -> str:
    """The card of an adapter that another one was made into.

    Args:
        base: The base model.
        peft_type: PEFT's name of the method.
        how: What the adapter was made from, as a sentence.
        size: Bytes of its weights.
    """
    method = peft_type.lower().replace("_", "-")
    body = [f"{how} Its weights have {size:,} bytes.", "## Use", use(base_name(base), "ttlora" in method)]
    return model_card(f"{method} on {base_name(base)}", base, ["ttlora", method], body)


def use(base: str, is_ours: bool) -> str:
    """How PEFT loads an adapter, as Python in Markdown."""
    ours = "import ttlora  # so that PEFT knows the method\n" if is_ours else ""
    return (
        f"```python\n{ours}from peft import PeftModel\n\n"
        f'model = PeftModel.from_pretrained(base_model, "path/to/this/folder")  # base_model: {base}\n```'
    )
