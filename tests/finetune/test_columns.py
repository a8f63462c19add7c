"""Columns that their names explain, and training rows of several files in shares."""

import copy
import pickle
from dataclasses import replace

import pytest

from tests.conftest import write_jsonl
from ttlora.errors import UserError
from ttlora.finetune.columns import with_usual_columns
from ttlora.finetune.data import load_data
from ttlora.finetune.inputs import Preferred, Prompted
from ttlora.finetune.recipe import Recipe
from ttlora.finetune.run import train
from ttlora.record import Record

CHAT = [{"role": "user", "content": "the film"}, {"role": "assistant", "content": "was great"}]


def recipe_for(tmp_path, rows, model="m", **keys):
    file = str(write_jsonl(tmp_path / "rows.jsonl", rows))
    files = {"train": file, "validation": file, "output": str(tmp_path / "out")}
    return Recipe(**{"model": str(model), "task": "file", **files, **keys})


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"messages": CHAT}, Prompted((CHAT[0],), ("was great",))),
        (
            {"conversations": [{"from": "human", "value": "the film"}, {"from": "gpt", "value": "was great"}]},
            Prompted((CHAT[0],), ("was great",)),
        ),
        ({"prompt": "a", "completion": "b"}, Prompted("a", ("b",))),
        ({"instruction": "a", "input": "b", "output": "c"}, Prompted("a\nb", ("c",))),
        ({"instruction": "a", "output": "c"}, Prompted("a", ("c",))),
        ({"question": "a", "answer": "b"}, Prompted("a", ("b",))),
        ({"prompt": "a", "chosen": "b", "rejected": "c"}, Preferred("a", "b", "c")),
        ({"text": "a"}, Prompted("", ("a",))),
    ],
)
def test_usual_columns(row, expected, tmp_path):
    recipe = with_usual_columns(recipe_for(tmp_path, [row]))
    assert list(load_data(recipe).training.inputs) == [expected]
    assert (recipe.epochs, recipe.batch_size, recipe.max_length) == (3, 16, 1024)


@pytest.mark.parametrize(
    ("row", "keys"),
    [
        ({"text": "a", "label": 1, "messages": []}, {}),
        ({"question": "a", "answer": "b"}, {"label_column": "answer"}),
        ({"review": "a", "stars": 1}, {}),
        ({"text": "a", "stars": 1}, {}),
    ],
)
def test_nothing_is_taken_for_granted_beside_what_is_said(row, keys, tmp_path):
    recipe = recipe_for(tmp_path, [row], **keys)
    assert with_usual_columns(recipe) == recipe
    assert (recipe.epochs, recipe.batch_size, recipe.max_length) == (20, 32, 128)


def test_defaults_of_the_kind_survive_copies(tmp_path):
    recipe = recipe_for(tmp_path, [{"text": "a"}])
    for copied in (copy.deepcopy(recipe), pickle.loads(pickle.dumps(recipe))):
        assert with_usual_columns(copied).max_length == 1024
    assert type(recipe.as_dict()["epochs"]) is int


def test_a_run_tells_what_it_took_columns_for(llama, tmp_path, capsys):
    rows = [{"question": "the film", "answer": "was great"}] * 4
    recipe = recipe_for(tmp_path, rows, llama, epochs=1, max_length=24, max_new_tokens=2)
    train(recipe)
    told = "by the names of the columns: label_kind 'generation', text_column 'question', label_column 'answer'\n"
    assert told in capsys.readouterr().err
    # the recipe as it was typed is that of the run
    assert train(replace(recipe, resume=True), quiet=True) == Record.read(tmp_path / "out" / "result.json")


def test_files_in_shares(tmp_path):
    first = write_jsonl(tmp_path / "first.jsonl", [{"text": f"first {number}"} for number in range(8)])
    second = write_jsonl(tmp_path / "second.jsonl", [{"text": f"second {number}"} for number in range(4)])
    recipe = recipe_for(tmp_path, [{"text": "a"}], train=f"{first}*0.5,{second}*2.25", label_kind="text")
    recipe = recipe.with_defaults({})
    assert recipe.train == [f"{first}*0.5", f"{second}*2.25"]
    texts = [given.answers[0] for given in load_data(recipe).training.inputs]
    assert sum(text.startswith("first") for text in texts) == 4
    assert len(set(texts[:4])) == 4
    assert sorted(texts.count(f"second {number}") for number in range(4)) == [2, 2, 2, 3]
    assert texts == [given.answers[0] for given in load_data(recipe).training.inputs]


def test_a_file_with_a_star_in_its_name(tmp_path):
    file = write_jsonl(tmp_path / "a*2", [{"text": "a"}])
    recipe = recipe_for(tmp_path, [{"text": "a"}], train=str(file), label_kind="text")
    assert (recipe.places("train"), recipe.weights) == ([str(file)], [1.0])


@pytest.mark.parametrize(
    ("keys", "complaint"),
    [
        ({"train": "rows.jsonl*0"}, "`train`: a weight of 0 leaves none of 1 rows"),
        ({"validation": "rows.jsonl*2"}, "`validation` is 'rows.jsonl.2', and only training rows have weights"),
    ],
)
def test_wrong_shares(keys, complaint, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=complaint):
        load_data(recipe_for(tmp_path, [{"text": "a"}], label_kind="text", **keys))
