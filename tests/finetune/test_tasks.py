import pytest

from ttlora.errors import UserError
from ttlora.finetune.named_tasks import NAMED
from ttlora.finetune.recipe import Recipe
from ttlora.finetune.tasks import columns_of, fill, find_task

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
        ("file", {"train": "t"}, "--task file needs --validation"),
        ("file", {"train": "t", "validation": "v", "data": "d"}, "--data goes with a named task"),
        ("file", {"train": "t", "validation": "v", "text_column": "label"}, "have to differ"),
        ("glue/sst2", {"train": "t"}, "--train goes with --task file"),
        ("glue/sst2", {"label_column": "y"}, "--label-column goes with --task file"),
        ("glue/sst2", {"prompt": "{sentence}"}, "--prompt goes with --task file"),
        ("glue/stsb", {"scoring": "prompt"}, "glue/stsb has numbers as labels, which no prompt can ask for"),
        ("file", {**FILES, "label_kind": "choice"}, "--choice-columns and --label-kind choice go together"),
        ("file", {**FILES, "choice_columns": "a,b"}, "--choice-columns and --label-kind choice go together"),
        (
            "file",
            {**FILES, "label_kind": "choice", "choice_columns": "text,b"},
            "have to differ: they are text, text, b",
        ),
        ("file", {**FILES, "label_kind": "text", "text_pair_column": "b"}, "use one text column"),
        ("file", {**FILES, "label_kind": "regression", "scoring": "prompt"}, "numbers are labels that no prompt"),
        ("file", {**FILES, "prompt": "{text} It was"}, "--prompt has no use here: it goes with --scoring prompt"),
        ("file", {**FILES, "answers": "0=a 1=b"}, "--answers has no use here"),
        ("file", {**FILES, "scoring": "prompt", "prompt": "Well?"}, "names no column in braces"),
        ("file", {**FILES, "scoring": "prompt", "prompt": "{} Well?"}, "braces without a column's name"),
        ("file", {**FILES, "scoring": "prompt", "prompt": "{text Well?"}, "--prompt: .*expected '}'"),
    ],
)
def test_what_does_not_go_together_is_refused(task, keys, complaint):
    with pytest.raises(UserError, match=complaint):
        find(task, **keys)
