"""From a row to the model's input: each cell is checked, and a wrong one is named with its place."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date
from decimal import Decimal
from typing import Any

from ttlora.errors import UserError
from ttlora.finetune.files import Row
from ttlora.finetune.labels import label_name, whole_number
from ttlora.finetune.tasks import Task, columns_of, fill
from ttlora.utf8 import half_character
from ttlora.values import shown

# among the texts of a row, by column: the tools of a chat, and the prompt of a preference
TOOLS, PROMPT = "\0tools", "\0prompt"

# its role, its content, and what else the template of a chat model takes, such as the calls of tools
Message = dict[str, Any]
Messages = tuple[Message, ...]


@dataclass(frozen=True)
class Prompted:
    """A prompt, or the messages of a chat, and the answers that may follow.

    Attributes:
        prompt: The text, or the messages.
        answers: What may follow.
        ending: The assistant's last message, where it is more than an answer.
        tools: Descriptions of the tools that the assistant may call.
    """

    prompt: str | Messages
    answers: tuple[str, ...]
    ending: Message | None = None
    tools: tuple[Any, ...] = ()


@dataclass(frozen=True)
class Preferred:
    """A prompt, or the messages of a chat, with the answer that is preferred to another."""

    prompt: str | Messages
    chosen: str | Messages
    rejected: str | Messages
    tools: tuple[Any, ...] = ()


# what a head reads: the texts of a row, or those of each choice
Texts = tuple[str, ...]
Input = Texts | tuple[Texts, ...] | Prompted | Preferred


@dataclass(frozen=True)
class Example:
    """A row's cells that the task reads, and its label.

    Attributes:
        place: Where the row stands: "reviews.csv, line 7".
        cells: Texts by column, or a chat as a tuple of its messages; the choices of a choice task are a list.
        label: The label, or the answer.
    """

    place: str
    cells: dict[str, Any]
    label: Any

    def as_row(self) -> dict[str, str]:
        """The example as it is stored: in JSON, since a chat may hold anything, and a file's name what is no UTF-8."""
        return {name: json.dumps(getattr(self, name), default=str) for name in ("place", "cells", "label")}

    @classmethod
    def of_row(cls, row: Mapping[str, str]) -> "Example":
        """The example of a stored row."""
        cells = {
            name: tuple(value) if isinstance(value, list) and name else value
            for name, value in json.loads(row["cells"]).items()
        }
        return cls(json.loads(row["place"]), cells, json.loads(row["label"]))


def read_example(task: Task, source: str, place: str, row: Row) -> Example:
    """The cells of a row that the task reads, and its label.

    Raises:
        UserError: One is not there, or cannot be used.
    """
    cells = _cells(task, row, source, place)
    if task.kind in ("text", "preference") or _chat(cells) is not None:
        return Example(f"{source}, {place}", cells, None)
    label = _cell(task, row, task.label_column, source, place)
    if label is None or (isinstance(label, str) and not label.strip()):
        raise UserError(f"{source}, {place} has no label: column {task.label_column!r} is empty")
    if isinstance(label, str):
        _whole(label, task.label_column, source, place)
    if task.kind == "choice":
        cells, label = _choose(task, source, place, cells, label)
    elif not _is_scalar(label):
        raise UserError(f"{source}, {place}: label {shown(label)} is neither text nor a number")
    elif task.kind == "generation":
        label = _text(label, task.label_column, source, place)
    return Example(f"{source}, {place}", cells, str(label).lower() if isinstance(label, bool) else label)


def input_of(task: Task, row: Row, source: str, place: str) -> Input:
    """The model's input for a row without a label.

    Raises:
        UserError: A column is not there, or holds no text.
    """
    return make_input(task, _cells(task, row, source, place, labelled=False))


def make_input(task: Task, cells: dict[str, Any], answer: Any = None) -> Input:
    """The model's input; for a generation it holds the answer that is to be learned.

    Args:
        task: The task, its labels known.
        cells: Texts by column.
        answer: The answer.
    """
    if task.kind == "text":
        return Prompted("", (fill(task.texts[0], cells),))
    if task.kind == "preference":
        chosen, rejected = (cells[column] for column in task.choices)
        return Preferred(cells[PROMPT], chosen, rejected, cells[TOOLS])
    if (chat := _chat(cells)) is not None:
        *before, last = chat
        if last["role"] != "assistant":
            return Prompted(chat, (), tools=cells[TOOLS])
        ending = None if last.keys() == {"role", "content"} else last
        return Prompted(tuple(before), (last.get("content") or "",), ending, cells[TOOLS])
    if not task.is_causal:
        texts = tuple(fill(template, cells) for template in task.texts)
        return tuple((*texts, choice) for choice in cells[""]) if task.kind == "choice" else texts
    prompt = fill(task.prompt or task.texts[0], cells)
    if task.kind == "choice":
        return Prompted(prompt, tuple(cells[""]))
    if task.kind == "generation":
        return Prompted(prompt, () if answer is None else (str(answer),))
    return Prompted(prompt, tuple(task.answers[str(label)] for label in task.labels))


def _cells(task: Task, row: Row, source: str, place: str, labelled: bool = True) -> dict[str, Any]:
    """The row's texts by column; the choices of a choice task are a list under the name ""."""
    if task.kind == "preference":
        return _pair(task, row, source, place, labelled)
    templates = [task.prompt or task.texts[0]] if task.is_causal else list(task.texts)
    cells: dict[str, Any] = {}
    for column in dict.fromkeys(column for template in templates for column in columns_of(template)):
        value = _cell(task, row, column, source, place, labelled)
        if task.kind == "generation" and isinstance(value, list):
            cells[column] = _chat_of(value, column, source, place, labelled)
            cells[TOOLS] = _tools(row, source, place)
        else:
            text = _text(value, column, source, place)
            cells[column] = task.wording.get(column, {}).get(text, text)
    if task.kind == "choice":
        cells[""] = _choices(task, row, source, place, labelled)
    return cells


def _cell(task: Task, row: Row, column: str, source: str, place: str, labelled: bool = True) -> Any:
    if column not in row:
        key = "text_column"
        if column == task.label_column or column in task.choices:
            key = "choice_columns" if column in task.choices else "label_column"
        hint = "" if task.hub else f": name another with `{key}`" if labelled else ", and the run was trained on it"
        raise UserError(f"{source}, {place}: there is no column {column!r}, only {', '.join(map(str, row))}{hint}")
    return row[column]


def _choices(task: Task, row: Row, source: str, place: str, labelled: bool) -> list[str]:
    values = [_cell(task, row, column, source, place, labelled) for column in task.choices]
    listed = len(task.choices) == 1 and isinstance(values[0], list)
    texts = [_text(value, ", ".join(task.choices), source, place) for value in (values[0] if listed else values)]
    if listed:
        texts = list(dict.fromkeys(texts))
    if len(texts) < 2:
        raise UserError(
            f"{source}, {place}: there is but one choice in {task.choices[0]!r}: a choice needs two or more"
        )
    return texts


def _choose(task: Task, source: str, place: str, cells: dict[str, Any], label: Any) -> tuple[dict[str, Any], int]:
    """The index of the right choice; where several are right, all but the first are taken out."""
    choices = cells[""]
    if isinstance(label, list):
        names = {label_name(item) for item in label if _is_scalar(item)}
        right = [choice for choice in choices if choice in names]
        if not right or len(right) == len(choices):
            raise UserError(f"{source}, {place}: of the choices, {len(right)} are in {task.label_column!r}")
        choices = [choice for choice in choices if choice == right[0] or choice not in right]
        if len(choices) < 2:
            raise UserError(f"{source}, {place}: all choices but one are in {task.label_column!r}")
        return {**cells, "": choices}, choices.index(right[0])
    meant = set()
    if _is_scalar(label):
        name = label_name(label)
        number = whole_number(name)
        if number is not None and 0 <= number < len(choices):
            meant.add(number)
        if isinstance(label, str) or not meant:
            meant |= {names.index(name) for names in (list(task.choices), choices) if name in names}
    if len(meant) == 1:
        return cells, meant.pop()
    if meant:
        raise UserError(
            f"{source}, {place}: label {shown(label)} can be a choice's number, from 0 on, and a choice itself, which "
            "is another one: write the number as a number, or the choice's column"
        )
    raise UserError(
        f"{source}, {place}: label {shown(label)} names none of the {len(choices)} choices: it has to be a number from "
        "0 on, a choice's column, or a choice itself"
    )


def _pair(task: Task, row: Row, source: str, place: str, labelled: bool) -> dict[str, Any]:
    """The prompt and both answers of a preference, by column, and the tools of a chat.

    Of answers that are whole chats, the prompt is what they have in common.
    """
    answers = {column: _cell(task, row, column, source, place, labelled) for column in task.choices}
    for column, value in answers.items():
        if value is None or value == [] or (isinstance(value, str) and not value.strip()):
            raise UserError(f"{source}, {place}: column {column!r} is empty: a preference needs both answers")
    template, are_chats = task.prompt or task.texts[0], [isinstance(value, list) for value in answers.values()]
    prompt: Any
    said: dict[str, Any]
    if not any(are_chats):
        columns = {column: _cell(task, row, column, source, place, labelled) for column in columns_of(template)}
        texts = {column: _text(value, column, source, place) for column, value in (columns | answers).items()}
        prompt, said = fill(template, texts), {column: texts[column] for column in answers}
    elif all(are_chats):
        said = {column: _messages(value, column, source, place) for column, value in answers.items()}
        if isinstance(given := row.get(task.texts[0]), list):
            prompt = _messages(given, task.texts[0], source, place)
        else:
            chosen, rejected = said.values()
            pairs = zip(chosen, rejected, strict=False)
            shared = next((at for at, (one, other) in enumerate(pairs) if one != other), 0)
            prompt, said = chosen[:shared], {column: chat[shared:] for column, chat in said.items()}
        for column, chat in said.items():
            if not prompt or not chat or chat[-1]["role"] != "assistant":
                raise UserError(
                    f"{source}, {place}: the chat in column {column!r} has to go on from a prompt, and to end with the "
                    "assistant's answer"
                )
    else:
        one, other = task.choices
        raise UserError(f"{source}, {place}: one of {one!r} and {other!r} is a text, and the other a chat")
    if len({str(value) for value in said.values()}) == 1:
        raise UserError(
            f"{source}, {place}: columns {' and '.join(map(repr, said))} hold the same, so there is nothing to prefer: "
            "take the row out"
        )
    return {**said, PROMPT: prompt, TOOLS: _tools(row, source, place)}


def _tools(row: Row, source: str, place: str) -> tuple[Any, ...]:
    """The descriptions of the tools that a chat may call: a list, or one as JSON, in the column that TRL takes."""
    value = row.get("tools")
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError as error:
            raise UserError(f"{source}, {place}: column 'tools' holds no JSON: {error}") from None
    if value is not None and not isinstance(value, list):
        raise UserError(f"{source}, {place}: column 'tools' holds no list of tools but {shown(value)}")
    return tuple(value or ())


def _chat_of(value: list[Any], column: str, source: str, place: str, labelled: bool) -> Messages:
    """The messages of a chat, which ends with an answer if it is to be learned."""
    chat = _messages(value, column, source, place)
    if not chat or (labelled and (len(chat) < 2 or chat[-1]["role"] != "assistant")):
        raise UserError(f"{source}, {place}: the chat in column {column!r} has to end with the assistant's answer")
    return chat


def _messages(value: list[Any], column: str, source: str, place: str) -> Messages:
    """The messages of a chat, each with its role and its content, or with the tools that it calls."""
    messages = []
    for message in map(_of_role, value):
        is_message = isinstance(message, dict) and isinstance(message.get("role"), str)
        # a table has a place for each key in every row
        given = {key: part for key, part in message.items() if part is not None} if is_message else {}
        if not isinstance(given.get("content", "" if given.get("tool_calls") else None), str):
            raise UserError(
                f"{source}, {place}: column {column!r} holds {shown(message)}, no message with role and content"
            )
        if half := half_character(json.dumps(given, ensure_ascii=False, default=str)):
            raise UserError(
                f"{source}, {place}: column {column!r} holds {half}, which is half a character: mend the text"
            )
        messages.append(given)
    return tuple(messages)


def _of_role(message: Any) -> Any:
    """A message with role and content, also where a data set has "from" and "value"."""
    if not isinstance(message, dict) or "from" not in message or "value" not in message:
        return message
    sender = message["from"]
    return {"role": {"human": "user", "gpt": "assistant"}.get(sender, sender), "content": message["value"]}


def _chat(cells: dict[str, Any]) -> Messages | None:
    return next((value for name, value in cells.items() if isinstance(value, tuple) and name != TOOLS), None)


def _text(value: Any, column: str, source: str, place: str) -> str:
    """A cell as text: text stays as it is; numbers, dates and true or false are spelt as usual."""
    if not (_is_scalar(value) or isinstance(value, Decimal | date)):
        raise UserError(f"{source}, {place}: column {column!r} holds no text but {shown(value)}")
    if isinstance(value, bool):
        return str(value).lower()
    return _whole(str(value), column, source, place)


def _whole(text: str, column: str, source: str, place: str) -> str:
    """The text, after checking that it holds no half of a character, which no tokenizer takes."""
    if half := half_character(text):
        raise UserError(f"{source}, {place}: column {column!r} holds {half}, which is half a character: mend the text")
    return text


def _is_scalar(value: object) -> bool:
    return isinstance(value, str | int) or (isinstance(value, float) and math.isfinite(value))
