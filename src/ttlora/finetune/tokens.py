"""From texts and chats to token ids, each of which the model knows."""

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Any

from ttlora.errors import UserError, one_line
from ttlora.finetune.base import Base
from ttlora.finetune.inputs import Input, Message, Prompted, Texts

# how many texts a tokenizer is given together, which many of them divide among threads
TEXTS_AT_ONCE = 1000
# the target of a token that is not to be learned
IGNORED = -100
# a row as token ids, with its label and what else makes a batch
TokenRow = dict[str, Any]
# token ids and targets
Tokens = tuple[list[int], list[int]]


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


def tokenise(texts: Iterable[Texts], tokenizer: Any, max_length: int) -> Iterator[tuple[TokenRow, bool]]:
    """Each row as token ids, without padding, and whether it had to be cut.

    Args:
        texts: One or two texts a row.
        tokenizer: The model's tokenizer.
        max_length: Most tokens a row; the longest text of a row is cut first.
    """
    remaining = iter(texts)
    while some := list(islice(remaining, TEXTS_AT_ONCE)):
        columns = [list(column) for column in zip(*some, strict=True)]
        encoded = tokenizer(*columns, truncation=True, max_length=max_length)
        rows = [{name: values[row] for name, values in encoded.items()} for row in range(len(some))]
        full = [index for index, row in enumerate(rows) if len(row["input_ids"]) >= max_length]
        whole = tokenizer(*([column[index] for index in full] for column in columns))["input_ids"] if full else []
        cut = {index for index, ids in zip(full, whole, strict=True) if len(ids) > max_length}
        yield from ((row, index in cut) for index, row in enumerate(rows))


def answer_ids(prompt: str, answer: str, base: Base, place: str, ends: bool = False) -> Tokens:
    """The token ids of an answer after a prompt, and the targets: the ids where the answer is, `IGNORED` before it.

    Args:
        prompt: What the answer follows, with a space between where neither has one; it may be empty.
        answer: The answer.
        base: The model and its tokenizer.
        place: Where the row stands.
        ends: Whether the token of the text's end belongs to the answer.

    Raises:
        UserError: There are no tokens, or one has no embedding; the message names the row.
    """
    tokenizer, together, start = base.tokenizer, answer, 0
    if prompt:
        together = prompt + ("" if prompt[-1:].isspace() or answer[:1].isspace() else " ") + answer
    ids: list[int] = tokenizer(together)["input_ids"]
    require_known(ids, base, place)
    if prompt:
        # tokens may join over the seam, and some tokenizers close what they are given: what both have in common
        start = min(common_start(tokenizer(prompt)["input_ids"], ids), len(ids) - 1)
    if ends and tokenizer.eos_token_id is not None and ids[-1] != tokenizer.eos_token_id:
        ids = [*ids, tokenizer.eos_token_id]
    return ids, [IGNORED] * start + ids[start:]


def turn_ids(chat: Sequence[Message], of_all: bool, base: Base, place: str, tools: Sequence[Any] = ()) -> Tokens:
    """The token ids of a chat, and the targets: the ids where the assistant speaks, `IGNORED` elsewhere.

    Where the assistant speaks is said by the template's marks, by those that TRL has for templates without, or else by
    what each of its turns adds to the chat before it.

    Args:
        chat: Messages, the last of which is the assistant's.
        of_all: Whether all turns of the assistant are meant, or the last one alone.
        base: The model and its tokenizer.
        place: Where the row stands.
        tools: Descriptions of the tools that the assistant may call.

    Raises:
        UserError: The tokenizer has no template, or its template refuses the chat, or writes its beginning otherwise
            when more follows.
    """
    if of_all and (template := _marked_template(base.tokenizer)) is not None:
        marked = _written(chat, base.tokenizer, place, tools, chat_template=template, return_assistant_tokens_mask=True)
        ids, mask = marked["input_ids"], marked["assistant_masks"]
        require_known(ids, base, place)
        return ids, [token if spoken else IGNORED for token, spoken in zip(ids, mask, strict=True)]
    ids = _written(chat, base.tokenizer, place, tools)["input_ids"]
    require_known(ids, base, place)
    targets = [IGNORED] * len(ids)
    for at, message in enumerate(chat):
        is_last = at == len(chat) - 1
        if message["role"] != "assistant" or not (of_all or is_last):
            continue
        before = _written(chat[:at], base.tokenizer, place, tools, add_generation_prompt=True)["input_ids"]
        until = ids if is_last else _written(chat[: at + 1], base.tokenizer, place, tools)["input_ids"]
        start, end = common_start(before, ids), common_start(until, ids)
        if not is_last and (start < len(before) or end < len(until)):
            raise UserError(
                f"{place}: the chat template of the model's tokenizer writes an earlier turn otherwise when more "
                "follows, so what the assistant says there cannot be told: set `loss_on` to answer"
            )
        targets[start:end] = ids[start:end]
    return ids, targets


def _marked_template(tokenizer: Any) -> str | None:
    """The tokenizer's template for chats, or TRL's for the same chats, with marks where the assistant speaks."""
    from trl import get_training_chat_template

    if tokenizer.chat_template is None:
        return None
    try:
        return get_training_chat_template(tokenizer) or tokenizer.chat_template
    except Exception:  # it has none for this template, or the template fails on the chats that it is tried with
        return None


def _written(chat: Sequence[Message], tokenizer: Any, place: str, tools: Sequence[Any], **options: Any) -> Any:
    """What the tokenizer's template for chats makes of messages, as token ids.

    Raises:
        UserError: The tokenizer has no template, or its template refuses the chat.
    """
    if tokenizer.chat_template is None:
        raise UserError(
            "the rows hold chats, and the model's tokenizer has no chat template: take an instruction-tuned model, or "
            "rows with a prompt and an answer column"
        )
    try:
        return tokenizer.apply_chat_template(
            list(chat), tools=list(tools) or None, tokenize=True, return_dict=True, **options
        )
    except Exception as error:  # a template is a program of its own, which may fail in any way
        raise UserError(
            f"{place}: the chat template of the model's tokenizer refuses the chat: {one_line(error)}"
        ) from None


def common_start(first: Sequence[int], second: Sequence[int]) -> int:
    """How many tokens two rows begin with alike."""
    pairs = zip(first, second, strict=False)
    return next((at for at, (one, other) in enumerate(pairs) if one != other), min(len(first), len(second)))


def shortened(
    ids: list[int], targets: list[int], max_length: int, base: Base, place: str
) -> tuple[list[int], list[int], bool]:
    """A row of at most so many tokens, and whether it had to be cut.

    The beginning goes, but not the first token, which may say that it is one, and nothing that is to be learned; what
    still does not fit goes at the end.

    Args:
        ids: Token ids.
        targets: Those to be learned, and `IGNORED` elsewhere.
        max_length: The most tokens that stay.
        base: The model.
        place: Where the row stands.

    Raises:
        UserError: The row is a single token.
    """
    surplus = len(ids) - max_length
    if surplus > 0:
        start = next((at for at, target in enumerate(targets) if target != IGNORED), len(ids))
        taken = min(surplus, max(start - 1, 0))
        ids, targets = ([*row[:1], *row[1 + taken :]][:max_length] for row in (ids, targets))
    if len(ids) < 2:
        raise UserError(
            f"{place}: the row is a single token of model {base.name}, with none before it that could foretell it: "
            "take the row out, or give it a longer text"
        )
    return ids, targets, surplus > 0


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
    if isinstance(given.prompt, str):
        ids: list[int] = tokenizer(given.prompt)["input_ids"]
    else:
        ids = _written(given.prompt, tokenizer, place, given.tools, add_generation_prompt=True)["input_ids"]
    if len(ids) > 1 and ids[-1] in (tokenizer.eos_token_id, tokenizer.sep_token_id):
        # some tokenizers close what they are given, after which nothing would follow
        ids = ids[:-1]
    require_known(ids, base, place)
    return ids
