"""Classes that arrive in groups: an expert a group under a router, against one adapter for all, and one that goes on.

    apt-cache dumpavail > INDEX
    python benchmarks/incremental.py --model MODEL --index INDEX --output OUT [--rows 160] [--measured 60] [--epochs 5]

The classes are twelve sections of a Debian index, and the texts its packages' descriptions in one line, one of each
source package. Of each section ROWS training and MEASURED validation rows are drawn. Three sections are a group, in the
order of the alphabet. With each group comes an expert, trained on its rows alone, and `ttlora route` adds it to the
mixture of those before. The score is accuracy over the classes that have come until then: nobody tells the group, and
what another group's expert says is wrong. What OUT holds of an earlier call is not trained again.
"""

import argparse
import random
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from learning import Setting, batch_of, batches_of_like_length, optimizer_of
from mixture import METHODS, SPLITS, Rows, show, write
from transformers import AutoModelForSequenceClassification, AutoTokenizer, get_linear_schedule_with_warmup

import ttlora
from ttlora.finetune.finished import FinishedRun
from ttlora.finetune.routed import RoutedExperts

GROUPS = (
    ("admin", "editors", "fonts"),
    ("games", "graphics", "mail"),
    ("math", "net", "science"),
    ("sound", "text", "web"),
)
SECTIONS = [section for group in GROUPS for section in group]
NAMES = ["-".join(group) for group in GROUPS]
# descriptions that tell what becomes of a package, and not what it does
EMPTY = re.compile("transitional|dummy|meta-?package|translation", re.IGNORECASE)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("model", "index", "output"):
        parser.add_argument(f"--{name}", required=True, type=Path)
    for name, default in (("rows", 160), ("measured", 60), ("epochs", 5)):
        parser.add_argument(f"--{name}", type=int, default=default)
    given = parser.parse_args()
    with given.index.open(encoding="utf-8") as index:
        rows = draw(descriptions(index), given.rows, given.measured)
    keys = {"model": str(given.model), "task": "file", "epochs": given.epochs, "threads": 1, "resume": True}
    files = {name: written(given.output / "data" / name, rows, [name]) for name in NAMES}
    for method in METHODS:
        for name in NAMES:
            output = str(given.output / method / name)
            ttlora.train(ttlora.Recipe(method=method, output=output, **files[name], **keys), quiet=True)
        arrive(method, given.output)
    together = str(given.output / "together")
    files_of_all = written(given.output / "data" / "all", rows, NAMES)
    ttlora.train(ttlora.Recipe(output=together, **files_of_all, **keys), quiet=True)
    run = FinishedRun.load(together)
    found = {name: list(run.predict(without_labels(rows[name, "validation"]))) for name in NAMES}
    show("one adapter for all", [accuracy(found[name], rows[name, "validation"]) for name in NAMES])
    train_on_and_on(given.model, rows, given.epochs)


def packages(lines: Iterable[str]) -> Iterator[dict[str, str]]:
    """The fields of each package of an index, of those of several lines the first."""
    fields: dict[str, str] = {}
    for line in [*lines, "\n"]:
        if not line.strip():
            if fields:
                yield fields
            fields = {}
        elif not line[0].isspace():
            name, _, value = line.partition(":")
            fields[name] = value.strip()


def descriptions(index: Iterable[str]) -> dict[str, list[str]]:
    """The descriptions of the packages in each section: one of a source package, and each wording once."""
    texts: dict[str, list[str]] = {section: [] for section in SECTIONS}
    seen: set[str] = set()
    for fields in packages(index):
        # outside of Debian's main part it is, say, non-free/games
        section, text = fields.get("Section", "").rpartition("/")[2], fields.get("Description", "")
        # a source may have its version in brackets
        source, wording = fields.get("Source", fields["Package"]).split(" ")[0], f"text {text.lower()}"
        if section in texts and text and not EMPTY.search(text) and seen.isdisjoint((source, wording)):
            texts[section].append(text)
            seen |= {source, wording}
    return texts


def draw(texts: dict[str, list[str]], count: int, measured: int) -> Rows:
    """The rows of each group, as many of one section as of another."""
    drawn: Rows = {(name, split): [] for name in NAMES for split in SPLITS}
    for name, group in zip(NAMES, GROUPS, strict=True):
        for section in group:
            if (there := len(texts[section])) < count + measured:
                raise SystemExit(f"the index has {there} descriptions of section {section}: {count + measured} needed")
            chosen = random.Random(0).sample(texts[section], count + measured)
            its = [{"text": text, "label": section} for text in chosen]
            drawn[name, "train"] += its[:count]
            drawn[name, "validation"] += its[count:]
    return drawn


def written(folder: Path, rows: Rows, names: list[str]) -> dict[str, str]:
    """Files of the rows of some groups, by split."""
    return {
        split: write(folder / f"{split}.jsonl", [row for name in names for row in rows[name, split]])
        for split in SPLITS
    }


def arrive(method: str, output: Path) -> None:
    """Extend the router by one expert after the other, and measure after each."""
    last = output / method / NAMES[0]
    for count, name in enumerate(NAMES[1:], 2):
        folder = output / f"{method}-{count}"
        if not folder.exists():
            ttlora.route([last, output / method / name], folder)
        last = folder
        tasks = RoutedExperts.load(folder).evaluate()
        show(f"{method}, {count} groups: found", [task.found.found for task in tasks])
        show(f"{method}, {count} groups: routed", [task.metrics["accuracy"] for task in tasks])
        show(f"{method}, {count} groups: told", [task.told["accuracy"] for task in tasks])


def train_on_and_on(name: Path, rows: Rows, epochs: int) -> None:
    """One adapter, and one head over all classes, trained on one group after the other, and measured after each."""
    torch.manual_seed(0)
    order, tokenizer = random.Random(0), AutoTokenizer.from_pretrained(name)
    base = AutoModelForSequenceClassification.from_pretrained(name, num_labels=len(SECTIONS))
    model = Setting.parse("tt:pooler=true").adapt(base)
    known = {key: [((row["text"],), SECTIONS.index(row["label"])) for row in its] for key, its in rows.items()}
    for count, group in enumerate(NAMES, 1):
        train = known[group, "train"]
        batches = [batch for _ in range(epochs) for batch in batches_of_like_length(train, 32, order)]
        _, optimizer = optimizer_of(model, 1e-3)
        schedule = get_linear_schedule_with_warmup(optimizer, 0, len(batches))
        model.train()
        for batch in batches:
            optimizer.zero_grad()
            model(**batch_of(batch, tokenizer)).loss.backward()
            optimizer.step()
            schedule.step()
        model.eval()
        scores = []
        with torch.no_grad():
            for seen in NAMES[:count]:
                batch = batch_of(known[seen, "validation"], tokenizer)
                right = model(**batch).logits.argmax(-1) == batch["labels"]
                scores.append(right.float().mean().item())
        show(f"one adapter on and on, {count} groups", scores)


def without_labels(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{"text": row["text"]} for row in rows]


def accuracy(predicted: list[dict[str, Any]], rows: list[dict[str, Any]]) -> float:
    return sum(one["prediction"] == row["label"] for one, row in zip(predicted, rows, strict=True)) / len(rows)


if __name__ == "__main__":
    main()
