"""From texts and chats to token ids, each of which the model knows."""

from collections.abc import Sequence
from typing import Any

from ttlora.errors import UserError, one_line
from ttlora.finetune.base import Base
from ttlora.finetune.data import Rows
from ttlora.finetune.inputs import Input, Prompted


def require_known(ids: Sequence[int], base: Base, place: str) -> None:
    """Check that a row has token ids, and that the model has an embedding for each.

    Args:
        ids: The row's token ids.
        base: The model and its tokenizer.
        place: Where the row stands.

    Raises:
        UserError: There are none, or one has no embedding; the message names the row.
    """
    if not ids:
        raise UserError(
            f"{place}: the tokenizer of model {base.name} makes no token of the row's text, so there is nothing to put "
            "to the model: take the row out, or give it a text"
        )
    if (highest := max(ids)) >= base.vocabulary:
        token = base.tokenizer.convert_ids_to_tokens(highest)
        raise UserError(
            f"{place}: the tokenizer gives {token!r} the number {highest}, and model {base.name} has embeddings for "
            f"the numbers below {base.vocabulary}: take the tokenizer that was made for the model, or resize the "
            "model's embeddings (resize_token_embeddings) and save it"
        )


def tokenise(texts: Sequence[Any], tokenizer: Any, max_length: int) -> tuple[Rows, int]:
    """The rows as token ids, without padding, and how many of them had to be cut.

    Args:
        texts: One or two texts a row.
        tokenizer: The model's tokenizer.
        max_length: Most tokens a row; the longest text of a row is cut first.
    """
    columns = [list(column) for column in zip(*texts, strict=True)]
    encoded = tokenizer(*columns, truncation=True, max_length=max_length)
    rows = [{name: values[row] for name, values in encoded.items()} for row in range(len(texts))]
    full = [index for index, row in enumerate(rows) if len(row["input_ids"]) >= max_length]
    whole = tokenizer(*([column[index] for index in full] for column in columns))["input_ids"] if full else []
    return rows, sum(len(ids) > max_length for ids in whole)


def prompt_text(prompt: Any, tokenizer: Any, place: str) -> str:
    """A prompt as text; the messages of a chat through the tokenizer's template.

    Args:
        prompt: A text, or messages.
        tokenizer: The model's tokenizer.
        place: Where the row stands, for messages.

    Raises:
        UserError: The tokenizer has no template for chats, or its template refuses this one.
    """
    if isinstance(prompt, str):
        return prompt
    if tokenizer.chat_template is None:
        raise UserError(
            "the rows hold chats, and the model's tokenizer has no chat template: take an instruction-tuned model, or "
            "rows with a prompt and an answer column"
        )
    try:
        return str(tokenizer.apply_chat_template(list(prompt), tokenize=False, add_generation_prompt=True))
    except Exception as error:  # a template is a program of its own, which may fail in any way
        raise UserError(
            f"{place}: the chat template of the model's tokenizer refuses the chat: {one_line(error)}"
        ) from None


def prompt_ids(given: Input, base: Base, place: str) -> list[int]:
    """The token ids of a prompt after which a model writes.

    Args:
        given: A prompt; its answers are not looked at.
        base: The model and its tokenizer.
        place: Where the row stands.

    Raises:
        UserError: There are none, or one has no embedding; the message names the row.
    """
    assert isinstance(given, Prompted)
    tokenizer = base.tokenizer
    text = prompt_text(given.prompt, tokenizer, place)
    ids: list[int] = tokenizer(text, add_special_tokens=isinstance(given.prompt, str))["input_ids"]
    if len(ids) > 1 and ids[-1] in (tokenizer.eos_token_id, tokenizer.sep_token_id):
        # some tokenizers close what they are given, after which nothing would follow
        ids = ids[:-1]
    require_known(ids, base, place)
    return ids
