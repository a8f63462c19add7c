"""The quickstart's preparation of its data; the rest of it is the commands, which have tests of their own."""

import importlib.util
import json
from pathlib import Path

import pandas as pd
import pytest

SCRIPT = Path(__file__).parents[2] / "examples" / "quickstart" / "quickstart.py"


@pytest.fixture
def quickstart(tmp_path, monkeypatch):
    spec = importlib.util.spec_from_file_location("quickstart", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "OUTPUT", tmp_path)
    monkeypatch.setattr(module, "TRAINING_ROWS", 20)
    monkeypatch.setattr(module, "VALIDATION_ROWS", 8)
    return module


@pytest.fixture
def reviews(tmp_path):
    rows = [
        {"category": ("fresh", "rotten", "plot")[n % 3], "text": f"review {n // 2}", "movie": "m"} for n in range(120)
    ]
    pd.DataFrame([*rows, {"category": "fresh", "text": None, "movie": "m"}]).to_csv(tmp_path / "r.csv.bz2", index=False)
    return tmp_path / "r.csv.bz2"


def test_plots_empty_texts_and_duplicates_are_dropped(quickstart, reviews):
    table = quickstart.read_reviews(reviews)
    assert set(table["label"]) == {"fresh", "rotten"}
    assert table["text"].is_unique
    assert table["text"].notna().all()


def test_training_and_validation_rows_are_apart(quickstart, reviews, tmp_path):
    majority = quickstart.write_splits(quickstart.read_reviews(reviews))
    train, validation = (
        [json.loads(line) for line in (tmp_path / f"{name}.jsonl").read_text().splitlines()]
        for name in ("train", "validation")
    )
    assert (len(train), len(validation)) == (20, 8)
    assert not {row["text"] for row in train} & {row["text"] for row in validation}
    labels = [row["label"] for row in validation]
    assert majority == max(labels.count("fresh"), labels.count("rotten")) / 8


def test_missing_package_is_named(quickstart):
    with pytest.raises(SystemExit, match="the package no_such_package is not installed: run `make demo`"):
        quickstart.package_folder("no_such_package")
