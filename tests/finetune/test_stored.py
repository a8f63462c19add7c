"""Rows that stay on disk: what comes back is what went in, and memory holds only what is looked at."""

import gc
import os
import pickle
import subprocess
import sys
import tracemalloc

import datasets
import pyarrow
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.conftest import write_jsonl
from ttlora.errors import RunError
from ttlora.finetune.base import load_base
from ttlora.finetune.data import load_data
from ttlora.finetune.inputs import Example
from ttlora.finetune.objectives import objective_of
from ttlora.finetune.recipe import Recipe
from ttlora.finetune.stored import Stored, by_length, lengths_of, scratch_folder, store

IDS = st.lists(st.integers(0, 2**31 - 1), max_size=9)


@given(st.lists(st.fixed_dictionaries({"input_ids": IDS, "labels": st.integers(-100, 2**40)}), min_size=1))
def test_rows_of_token_ids_come_back(rows):
    stored = store(iter(rows))
    assert list(stored) == rows
    assert lengths_of(stored).tolist() == [len(row["input_ids"]) for row in rows]
    assert list(by_length(stored)) == sorted(rows, key=lambda row: len(row["input_ids"]))


@given(st.lists(st.lists(st.lists(st.integers(0, 99), min_size=1), min_size=1), min_size=1))
def test_the_longest_of_several_sequences_counts(rows):
    stored = store({"input_ids": sequences, "score": 0.5} for sequences in rows)
    assert [row["input_ids"] for row in stored] == rows
    assert lengths_of(stored).tolist() == [max(map(len, sequences)) for sequences in rows]


def test_more_rows_than_are_written_at_once():
    rows = [{"input_ids": [number] * (number % 7), "labels": number / 2} for number in range(1234)]
    stored = store(rows)
    assert list(stored) == rows
    assert Stored(stored, lambda row: row["labels"])[-1] == 1233 / 2
    assert list(Stored(stored, lambda row: row["labels"])[10:500:99]) == [number / 2 for number in range(10, 500, 99)]


@pytest.mark.parametrize(
    "cells",
    [
        {"text": 'a, "b"\n\0', "": ["one", "two"]},
        {"messages": ({"role": "user", "content": "a", "extra": {"b": [1, None]}},), "\0tools": ({"name": "f"},)},
        {"messages": (), "\0tools": ()},
    ],
)
@pytest.mark.parametrize("label", [3, 0.1, "007", "true", None, 10**30])
def test_an_example_comes_back(cells, label):
    # as Python spells the byte 255 in a file's name
    example = Example("caf\udcff.csv, line 7", cells, label)
    (row,) = store([example.as_row()])
    assert Example.of_row(row) == example


def test_a_copy_for_another_process_holds_the_rows():
    rows = [{"input_ids": [1, 2, number]} for number in range(300)]
    copy = pickle.dumps(by_length(store(rows)).select(range(250, 300)))
    script = "import pickle, sys; print([row['input_ids'][2] for row in pickle.load(sys.stdin.buffer)])"
    said = subprocess.run([sys.executable, "-c", script], input=copy, capture_output=True).stdout
    assert said.decode().strip() == str([*range(250, 300)])


def test_no_file_is_left(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    rows = store([{"input_ids": [1]}])
    assert os.listdir(tmp_path / "cache") == []
    assert rows[0] == {"input_ids": [1]}
    with scratch_folder() as folder:
        assert folder.parent == tmp_path / "cache"
    assert not folder.exists()


def test_a_cache_that_cannot_be_made(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "file" / "cache")
    assert list(store([{"input_ids": [1]}])) == [{"input_ids": [1]}]


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such limits")
def test_a_disk_without_room(tmp_path, monkeypatch):
    import resource

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, limits[1]))
    try:
        with pytest.raises(RunError, match=r"does not take the rows \(File too large\): make room there"):
            store({"input_ids": [number] * 1000} for number in range(1000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_rows_take_next_to_no_memory(llama, tmp_path):
    rows = write_jsonl(tmp_path / "rows.jsonl", [{"text": "the film was great " * 50}] * 1000)
    recipe = Recipe(model=str(llama), task="file", train=str(rows), validation=str(rows), output="o", label_kind="text")
    task = load_data(recipe).task
    objective = objective_of(task, load_base(recipe.model, task), recipe)
    gc.collect()
    before = pyarrow.total_allocated_bytes()
    tracemalloc.start()
    try:
        data = load_data(recipe)
        encoded = objective.encode_data(data)
        gc.collect()
        held = tracemalloc.get_traced_memory()[0] + pyarrow.total_allocated_bytes() - before
    finally:
        tracemalloc.stop()
    tokens = 2 * sum(len(row["input_ids"]) for row in encoded.training)
    assert tokens > 300_000
    # in lists, the references to token ids and targets alone take 16 bytes a token
    assert held / tokens < 1
