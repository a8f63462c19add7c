import json
from dataclasses import asdict, replace

import pytest

from ttlora.errors import UserError
from ttlora.finetune.named_tasks import NAMED, find_task
from ttlora.finetune.recipe import Recipe
from ttlora.finetune.tasks import LANGUAGE_TASKS, Task, columns_of, fill

FILES = {"train": "t", "validation": "v"}


def find(task: str, **keys):
    return find_task(Recipe(model="m", task=task, output="o", **keys))


def test_primary_metrics_are_the_papers():
    others = {
        "glue/cola": "matthews",
        "glue/mrpc": "f1",
        "glue/qqp": "f1",
        "glue/stsb": "spearman",
        "superglue/cb": "f1_macro",
        "superglue/multirc": "f1",
        "superglue/wsc": "f1",
        "metamathqa": "last_number",
    }
    assert {name: task.metrics[0] for name, task in NAMED.items()} == dict.fromkeys(NAMED, "accuracy") | others
    assert "accuracy" in NAMED["superglue/cb"].metrics
    assert "accuracy" in NAMED["superglue/wsc"].metrics


def test_named_task_knows_its_columns_and_folder():
    task = find("glue/stsb")
    assert (task.texts, task.kind, task.folder) == (("sentence1", "sentence2"), "regression", "stsb")


def test_file_task_has_the_recipes_columns():
    task = find("file", train="t", validation="v", text_pair_column="other", label_kind="regression")
    assert (task.texts, task.label_column) == (("text", "other"), "label")
    assert task.metrics == ("spearman", "pearson")


def test_both_halves_of_mnli_share_their_training_rows():
    matched, mismatched = find("glue/mnli"), find("glue/mnli-mismatched")
    assert (matched.folder, matched.validation) == ("mnli", "validation_matched")
    assert (mismatched.folder, mismatched.validation) == ("mnli", "validation_mismatched")


def test_a_named_task_that_is_written_has_the_settings_of_its_kind():
    assert [name for name, task in NAMED.items() if task.learns_language] == list(LANGUAGE_TASKS)
    recipe = Recipe(model="m", task="metamathqa", output="o", loss_on="all", packing=True)
    assert (recipe.epochs, recipe.batch_size, recipe.max_length) == (3, 16, 1024)
    assert find_task(recipe).folder == "metamathqa"
    assert Recipe(model="m", task="metamathqa", output="o", epochs=20).epochs == 20


def test_templates():
    assert columns_of("a column") == ["a column"]
    assert columns_of("{a}: {b c} {{x}} {a}") == ["a", "b c", "a"]
    assert fill("{a}: {b c} {{x}} {a}", {"a": "1", "b c": "{2}"}) == "1: {2} {x} 1"
    assert fill("a", {"a": "{b}"}) == "{b}"


@pytest.mark.parametrize(
    ("task", "keys", "complaint"),
    [
        ("glue/sst", {}, "no task is called 'glue/sst': did you mean glue/sst2?"),
        ("sst2", {}, "did you mean glue/sst2?"),
        ("file", {"train": "t"}, "`task` file needs `validation`"),
        ("file", {"train": "t", "validation": "v", "data": "d"}, "`data` goes with a named task"),
        ("file", {"train": "t", "validation": "v", "text_column": "label"}, "have to differ"),
        ("glue/sst2", {"train": "t"}, "`train` goes with `task` file"),
        ("glue/sst2", {"label_column": "y"}, "`label_column` goes with `task` file"),
        ("glue/sst2", {"prompt": "{sentence}"}, "`prompt` goes with `task` file"),
        ("glue/sst2", {"loss_on": "all"}, "`loss_on` goes with `label_kind` generation"),
        ("metamathqa", {"beta": 0.1}, "`beta` goes with `label_kind` preference"),
        ("metamathqa", {"label_kind": "generation"}, "`label_kind` goes with `task` file"),
        ("glue/stsb", {"scoring": "prompt"}, "glue/stsb has numbers as labels, which no prompt can ask for"),
        ("file", {**FILES, "label_kind": "choice"}, "`choice_columns` and `label_kind` choice go together"),
        ("file", {**FILES, "choice_columns": "a,b"}, "`choice_columns` and `label_kind` choice go together"),
        (
            "file",
            {**FILES, "label_kind": "choice", "choice_columns": "text,b"},
            "have to differ: they are text, text, b",
        ),
        ("file", {**FILES, "label_kind": "text", "text_pair_column": "b"}, "use one text column"),
        ("file", {**FILES, "label_kind": "regression", "scoring": "prompt"}, "numbers are labels that no prompt"),
        ("file", {**FILES, "prompt": "{text} It was"}, "`prompt` has no use here: it goes with `scoring` prompt"),
        ("file", {**FILES, "answers": "0=a 1=b"}, "`answers` has no use here"),
        ("file", {**FILES, "scoring": "prompt", "prompt": "Well?"}, "names no column in braces"),
        ("file", {**FILES, "scoring": "prompt", "prompt": "{} Well?"}, "braces without a column's name"),
        ("file", {**FILES, "scoring": "prompt", "prompt": "{text Well?"}, "`prompt`: .*expected '}'"),
        (
            "file",
            {**FILES, "scoring": "prompt", "prompt": "{text:>9}"},
            "`prompt`: '{text:>9}' formats 'text', and a col",
        ),
        ("file", {**FILES, "scoring": "prompt", "prompt": "{text!r}"}, "`prompt`: '{text!r}' formats 'text'"),
        ("file", {**FILES, "text_column": "a}"}, "`text_column`: 'a}': Single '}'"),
        ("file", {**FILES, "text_pair_column": "{a"}, "`text_pair_column`: '{a'"),
    ],
)
def test_what_does_not_go_together_is_refused(task, keys, complaint):
    with pytest.raises(UserError, match=complaint):
        find(task, **keys)


SAVED = {
    "name": "file",
    "texts": ["text"],
    "label_column": "label",
    "kind": "classification",
    "metrics": ["accuracy", "f1_macro"],
    "hub": None,
    "labels": ["007", 10],
    "choices": [],
    "wording": {"a": {"b": "c"}},
    "scoring": "head",
    "prompt": None,
    "answers": {},
    "validation": "validation",
}


def test_a_saved_task_is_read_again():
    for task in (*NAMED.values(), Task.from_dict(SAVED)):
        known = replace(task, labels=("0", "1")) if task.kind == "classification" else task
        assert Task.from_dict(json.loads(json.dumps(asdict(known)))) == known
    assert Task.from_dict(SAVED).labels == ("007", 10)
    # one of an earlier version, with fewer fields
    assert Task.from_dict({"name": "file", "texts": ["text"], "labels": [0, 1]}).validation == "validation"


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"name": 5}, "name is 5, and has to be text"),
        ({"texts": "text"}, "texts is 'text', and has to be a list of names"),
        ({"texts": []}, "texts is .*, and has to be one or two"),
        ({"texts": ["a", "b", "c"]}, "has to be one or two"),
        ({"texts": ["{"]}, "Single '{'"),
        ({"label_column": None}, "label_column has no value"),
        ({"kind": None}, "kind has no value"),
        ({"kind": "x"}, "kind is 'x', and has to be classification or regression or"),
        ({"metrics": []}, "metrics is"),
        ({"metrics": ["spearman"]}, r"metrics is \['spearman'\], and kind classification has accuracy"),
        ({"hub": ["a"]}, "hub is"),
        ({"labels": ["a"]}, "labels is .*, and has to be two or more"),
        ({"labels": [True, False]}, "labels is"),
        ({"labels": [[1], [2]]}, "labels is"),
        ({"kind": "choice", "metrics": ["accuracy"]}, "choices is empty"),
        ({"wording": {"a": 1}}, "wording of 'a' is 1"),
        ({"scoring": "prompt"}, "answers has none for label '007'"),
        ({"prompt": 5}, "prompt is 5"),
        ({"answers": {"0": 1}}, "answers of '0' is 1"),
        ({"validation": "output"}, "validation is 'output', which is no split"),
        ({"hub": ["a", "b"], "validation": "../train"}, "which is no split"),
        ({"colour": 1}, "unknown key colour"),
        ({"name": "\ud83d"}, r"it holds \\ud83d, which is half a character"),
    ],
)
def test_a_damaged_task_is_refused(change, complaint):
    with pytest.raises(ValueError, match=complaint):
        Task.from_dict({**SAVED, **change})


@pytest.mark.parametrize("content", [None, [], "x", 5, {}, {"name": "a"}, {"texts": ["a"]}])
def test_what_is_no_task_is_refused(content):
    with pytest.raises(ValueError, match=r"it (has no|is .* names with values)"):
        Task.from_dict(content)
