from pathlib import Path

import pytest

from ttlora.errors import UserError
from ttlora.experiments import runs
from ttlora.finetune.recipe import Recipe


def test_every_method_on_every_task_first_with_the_first_seed(plan):
    runs = plan(
        models="[a, b]",
        tasks="[glue/sst2, glue/rte]",
        methods="[tt-lora, {method: lora, seeds: [7]}]",
        seeds="[0, 1]",
    )
    assert [(run.model, run.task, run.method, run.recipe.seed) for run in runs[:5]] == [
        ("a", "glue/sst2", "tt-lora", 0),
        ("a", "glue/sst2", "lora", 7),
        ("a", "glue/rte", "tt-lora", 0),
        ("a", "glue/rte", "lora", 7),
        ("b", "glue/sst2", "tt-lora", 0),
    ]
    assert [(run.method, run.recipe.seed) for run in runs[8:]] == [("tt-lora", 1)] * 4


def test_keys_of_methods_go_before_those_of_tasks_models_and_all(plan):
    (run,) = plan(
        models="[{model: bert, epochs: 2, batch_size: 2, max_length: 2, patience: 2}]",
        tasks="[{task: glue/sst2, batch_size: 3, max_length: 3, learning_rate: 3}]",
        methods="[{method: lora, max_length: 4, learning_rate: null}]",
        epochs="1",
        weight_decay="1",
    )
    recipe = run.recipe
    assert (recipe.weight_decay, recipe.epochs, recipe.batch_size, recipe.max_length) == (1, 2, 3, 4)
    assert recipe.learning_rate == 1e-3, "null takes back what was set before, and the method's default stands"


def test_shared_keys_that_a_method_does_not_read_are_not_for_it(plan):
    runs = {run.method: run.recipe for run in plan(methods="[lora, head, adapter]", r="3", targets="query,value")}
    assert (runs["lora"].r, runs["lora"].targets) == (3, ["query", "value"])
    assert (runs["head"].r, runs["head"].targets) == (None, None)
    assert (runs["adapter"].r, runs["adapter"].targets) == (3, None), "bottlenecks have places of their own"
    with pytest.raises(UserError, match="head on glue/sst2: r means nothing to method head"):
        plan(methods="[{method: head, r: 3}]")


def test_a_runs_folder_is_readable_and_stays_as_long_as_its_recipe_does(plan, tmp_path):
    first = plan(models="[/models/MiniLM-L6]", methods="[{method: lora, r: 4}]")[0]
    assert first.name.startswith("MiniLM-L6_glue-sst2_lora-r4_seed0_")
    assert first.folder.path == tmp_path / "out" / "runs" / first.name
    others = plan(
        models="[/models/MiniLM-L6, bert]",
        tasks="[glue/rte, glue/sst2]",
        methods="[tt-lora, {method: lora, r: 8}, {method: lora, r: 4, alpha: 16, label: small}]",
        seeds="[1, 0]",
        threads="2",
        epochs=str(Recipe.epochs),
    )
    assert sum(run.name == first.name for run in others) == 1
    assert len({run.name for run in others}) == len(others) == 24


@pytest.mark.parametrize("keys", [{"epochs": "2"}, {"learning_rate": "2e-3"}, {"data": "elsewhere"}])
def test_another_recipe_has_another_folder(keys, plan):
    assert plan(**keys)[0].name != plan()[0].name


def test_names_with_slashes_and_signs_stay_in_the_folder(plan, tmp_path):
    run = plan(models='["../../../etc/pass wd"]')[0]
    assert run.folder.path.parent == tmp_path / "out" / "runs"
    assert run.name.startswith("pass-wd_glue-sst2_")
    assert len(plan(models=f"[{'m' * 250}]")[0].name) < 200


def test_the_same_run_twice_is_refused(plan):
    with pytest.raises(UserError, match="bert glue/sst2 lora seed 0 and bert glue/sst2 again seed 0 are the same run"):
        plan(methods="[lora, {method: lora, r: 8, label: again}]")


def test_local_models_and_data_have_to_be_there(plan, tmp_path):
    task = "{task: file, train: t.jsonl, validation: v.jsonl}"
    for keys, missing in (
        ({"data": tmp_path}, f"data {tmp_path}/sst2"),
        ({"models": "[/nowhere/bert]"}, "model /nowhere/bert"),
        ({"tasks": f"[{task}]"}, "train .*t.jsonl"),
    ):
        with pytest.raises(UserError, match=rf"c\.yaml: {missing} is not there, of bert .*; nothing was begun"):
            runs.require_inputs(Path("c.yaml"), plan(**keys))
    (tmp_path / "sst2").mkdir()
    runs.require_inputs(Path("c.yaml"), plan(data=tmp_path))
    runs.require_inputs(Path("c.yaml"), plan(models="[someone/bert]"))


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"methods": "[lora, tt-lor]"}, "methods entry 2: no method is called 'tt-lor': did you mean tt-lora?"),
        ({"tasks": "[glue/sst3]"}, "tasks entry 1: lora on glue/sst3: no task is called 'glue/sst3': did you mean"),
        ({"text_column": "review"}, "c.yaml: lora on glue/sst2: text_column goes with task file"),
        ({"seeds": "[0, 1, 2, 3]"}, "asks for 4 runs: 3 are the most"),
    ],
)
def test_mistakes_are_one_line(keys, message, plan, monkeypatch):
    monkeypatch.setattr(runs, "MOST_RUNS", 3)
    with pytest.raises(UserError) as error:
        plan(**{"methods": "[lora]", **keys})
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_columns_that_their_names_explain(plan, tmp_path):
    rows = tmp_path / "rows.csv"
    rows.write_text("question,answer\nwhat,that\n")
    files = {"train": str(rows), "validation": str(rows)}
    first, _ = plan(tasks="[file]", methods="[tt-lora, {method: lora, epochs: 1}]", **files)
    assert first.columns_by_name
    recipe = first.recipe
    assert (recipe.text_column, recipe.label_column, recipe.label_kind) == ("question", "answer", "generation")
    assert (recipe.epochs, recipe.batch_size) == (3, 16)
    (said,) = plan(tasks="[file]", methods="[tt-lora]", label_column="answer", **files)
    assert (said.columns_by_name, said.recipe.label_kind) == (False, None)
    (gone,) = plan(tasks="[file]", methods="[tt-lora]", train="gone.csv", validation="gone.csv")
    assert not gone.columns_by_name
