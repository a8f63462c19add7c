"""Train the router of a mixture: from finished runs to a folder that answers rows of unknown task."""

import os
import random
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from ttlora.errors import UserError, one_line
from ttlora.finetune.data import Split, load_data, rows_at
from ttlora.finetune.files import Row
from ttlora.finetune.machine import cpu_threads, require_one_process, telling_of_memory
from ttlora.finetune.mixture import Expert, Mixture, require_fit_together
from ttlora.finetune.routed import (
    EXPERTS,
    RECORD,
    Found,
    RoutedExperts,
    RouterRecord,
    is_router,
    sight_of,
    without_label,
    write_router,
)
from ttlora.finetune.router import Router, columns_read, texts_of
from ttlora.whole_files import require_free, whole_folder


@dataclass(frozen=True)
class Routed:
    """A router that was trained and written.

    Attributes:
        experts: The experts, in the order of the router's outputs.
        found: How well each expert's validation rows are found, by its name.
        before: The same of the routers that the experts come from.
        parameters: The router's entries: twice the features for each expert.
        seconds: Duration of the training, the base's forwards among it.
    """

    experts: tuple[Expert, ...]
    found: dict[str, Found]
    before: dict[str, Found]
    parameters: int
    seconds: float


def route(
    experts: Iterable[str | Path], output: str | Path, model: str | None = None, rows: int = 1000, seed: int = 0
) -> Routed:
    """Train a router that gives rows of unknown task to one of several experts of one base.

    Experts are finished runs, each with its head; nothing in them is trained again. The router learns from hidden
    states that the frozen base model has of the experts' own training rows. OUTPUT gets the router and a copy of each
    expert; `ttlora.predict` takes it as it takes a run.

    Args:
        experts: Output folders of `train`. One of `route` stands for its experts: with others beside it, experts are
            added, and the router alone is trained.
        output: Folder for the router; empty or not there yet.
        model: Where the base model is now; None: where the experts' recipes say.
        rows: Most training rows of each expert that the router learns from, and most validation rows that it is
            measured on, drawn by the seed.
        seed: Seed of the rows, their order and the noise.

    Returns:
        What was written, and how well each expert's rows are found.

    Raises:
        UserError: A folder holds no expert, two experts differ in their base or one is there twice, their data are not
            there any more, or the output is in use.

    Examples:
        >>> import ttlora
        >>> files = {"train": "train.jsonl", "validation": "validation.jsonl"}
        >>> recipe = ttlora.Recipe(model="model", task="file", output="stars", epochs=1, seed=1, **files)
        >>> record = ttlora.train(recipe, quiet=True)
        >>> routed = ttlora.route(["run", "stars"], "router")
        >>> routed.parameters
        256
        >>> [row] = ttlora.predict("router", [{"text": "a fine film"}])
        >>> row["expert"] in ("run", "stars")
        True
    """
    require_one_process()
    if rows < 1:
        raise UserError(f"`rows` is {rows}, and has to be at least 1")
    if not 0 <= seed < 2**32:
        raise UserError(f"`seed` is {seed}, and has to be from 0 to 4294967295")
    require_free(output)
    read, before = _read(experts)
    require_fit_together(read)
    tasks = [expert.task for expert in read]
    columns, max_length = columns_read(tasks), max(expert.recipe.max_length for expert in read)
    with telling_of_memory(), cpu_threads(read[0].recipe.threads):
        mixture = Mixture.load(read, model)
        began = time.perf_counter()
        sight = sight_of(mixture, max_length)
        training, validation = [], []
        for expert in read:
            data = load_data(expert.recipe)
            drawn = _drawn(expert, data.training, "train", rows, seed)
            texts = [texts_of(row, columns, place) for place, row in drawn]
            training.append(sight.states(texts, [place for place, _ in drawn]))
            validation.append(_drawn(expert, data.validation, "validation", rows, seed))
        numbers = torch.tensor([index for index, states in enumerate(training) for _ in states])
        router = Router.train(torch.cat(training), numbers, len(read), seed)
        seconds = time.perf_counter() - began
        routed = RoutedExperts(mixture, router, max_length)
        _require_mixed_batches(routed, [drawn[0] for drawn in validation])
        found = {
            expert.name: routed.found(index, [row for _, row in drawn], [place for place, _ in drawn])
            for index, (expert, drawn) in enumerate(zip(read, validation, strict=True))
        }
    with whole_folder(output, last=RECORD) as folder:
        write_router(folder, mixture, router, found, seed, max_length)
    return Routed(tuple(read), found, before, router.parameters, seconds)


def _read(experts: Iterable[str | Path]) -> tuple[list[Expert], dict[str, Found]]:
    """The experts, those of routers among them, and how well these found theirs."""
    read: list[Expert] = []
    before: dict[str, Found] = {}
    for given in [experts] if isinstance(experts, str | Path) else experts:
        path = Path(os.path.expanduser(given))
        if not is_router(path):
            read.append(Expert.read(path))
            continue
        record = RouterRecord.read(path)
        read += [Expert.read(path / EXPERTS / name) for name in record.experts]
        before |= {name: record.of(name) for name in record.experts}
    return read, before


def _require_mixed_batches(routed: RoutedExperts, placed: Sequence[tuple[str, Row]]) -> None:
    """Refuse experts whose rows the model does not take in one batch.

    OPT hides from its feed-forward layers which row their input belongs to; T5 counts the separators between texts.
    """
    places, rows = [place for place, _ in placed], [row for _, row in placed]
    chosen, _ = routed.choose(rows, places)
    try:
        routed.answer(chosen, rows, places)
    except ValueError as error:
        raise UserError(
            f"model {routed.mixture.experts[0].recipe.model} cannot answer rows of these experts in one batch: "
            f"{one_line(error).rstrip('.')}; experts can be mixed whose `targets` are those of the attention, and that "
            "read the same number of texts"
        ) from None


def _drawn(
    expert: Expert, split: Split, name: Literal["train", "validation"], count: int, seed: int
) -> list[tuple[str, Row]]:
    """Rows of a split as they stand in their files, without labels, each with its place."""
    chosen: Sequence[int] = range(len(split))
    if count < len(split):
        chosen = sorted(random.Random(seed).sample(chosen, count))
    places = [split.places[index] for index in chosen]
    inputs, labels = [split.inputs[index] for index in chosen], [split.labels[index] for index in chosen]
    rows = rows_at(expert.recipe, expert.task, Split(inputs, labels, places), is_measured=name == "validation")
    return [(place, without_label(expert.task, row)) for place, row in zip(places, rows, strict=True)]
