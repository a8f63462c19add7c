"""Chats and preferences of real sentences: what SmolLM2 learns in docs/results.

    python docs/results/chats.py DATA OUTPUT

DATA holds sst2/train.jsonl and sst2/validation.jsonl of GLUE. OUTPUT, a new folder, gets chats of two turns, in which
the assistant says what a critic thought of a film (256 to train on, 64 to measure), and as many pairs of answers to
one such question, of which the right one is preferred.
"""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

SIZES = {"train": 256, "validation": 64}
SYSTEM = {"role": "system", "content": "You tell what a critic thought of a film."}
ANSWERS = ("The critic did not like it.", "The critic liked it.")


def main() -> None:
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    data, output = map(Path, sys.argv[1:])
    output.mkdir(parents=True)
    for split, size in SIZES.items():
        rows = reviews(data / "sst2" / f"{split}.jsonl")
        turns = [(question(row), answer(row)) for row in (next(rows) for _ in range(2 * size))]
        chats = [{"messages": [SYSTEM, *turns[at], *turns[at + 1]]} for at in range(0, 2 * size, 2)]
        pairs = [
            {"prompt": [SYSTEM, question(row)], "chosen": [answer(row)], "rejected": [answer(row, is_right=False)]}
            for row in (next(rows) for _ in range(size))
        ]
        write(output / f"chats-{split}.jsonl", chats)
        write(output / f"pairs-{split}.jsonl", pairs)


def reviews(path: Path) -> Iterator[dict[str, Any]]:
    """Rows of six words and more: shorter ones are parts of phrases."""
    for line in path.read_text("utf-8").splitlines():
        row = json.loads(line)
        if len(row["sentence"].split()) >= 6:
            yield row


def question(row: dict[str, Any]) -> dict[str, str]:
    return {"role": "user", "content": row["sentence"].strip()}


def answer(row: dict[str, Any], is_right: bool = True) -> dict[str, str]:
    return {"role": "assistant", "content": ANSWERS[row["label"] if is_right else 1 - row["label"]]}


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf-8")


if __name__ == "__main__":
    main()
