import pytest

from ttlora.errors import UserError
from ttlora.finetune.recipe import Recipe
from ttlora.finetune.tasks import NAMED, find_task


def find(task: str, **keys):
    return find_task(Recipe(model="m", task=task, output="o", **keys))


def test_primary_metrics_are_the_papers():
    assert {name: task.metrics[0] for name, task in NAMED.items()} == {
        "glue/cola": "matthews",
        "glue/mrpc": "f1",
        "glue/rte": "accuracy",
        "glue/sst2": "accuracy",
        "glue/stsb": "spearman",
    }


def test_named_task_knows_its_columns_and_folder():
    task = find("glue/stsb")
    assert (task.text_columns, task.kind, task.folder) == (("sentence1", "sentence2"), "regression", "stsb")


def test_file_task_has_the_recipes_columns():
    task = find("file", train="t", validation="v", text_pair_column="other", label_kind="regression")
    assert (task.text_columns, task.label_column) == (("text", "other"), "label")
    assert task.metrics == ("spearman", "pearson")


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
    ],
)
def test_what_does_not_go_together_is_refused(task, keys, complaint):
    with pytest.raises(UserError, match=complaint):
        find(task, **keys)
