import pytest

from ttlora.errors import UserError
from ttlora.experiments.search.config import SearchPlan
from ttlora.experiments.search.domains import Choices, Range


def test_a_model_and_a_task_are_enough(tmp_path, architectures):
    path = tmp_path / "s.yaml"
    path.write_text(f"model: {architectures / 'bert'}\ntask: glue/sst2\n")
    plan = SearchPlan.read(path)
    assert plan.shared.keys() == {"model", "task", "method"}
    assert (plan.shared["method"], plan.seed) == ("tt-lora", 0)
    assert (plan.sampler, plan.scheduler, plan.trials) == ("random", "hyperband", 24)
    assert (plan.max_adapter_size, plan.target_score) == (None, None)
    assert (plan.cpus_per_trial, plan.gpus_per_trial) == (1, None)
    assert plan.domains == {
        "shape": "auto",
        "r": Choices((1, 2, 4, 5, 8, 12, 16)),
        "alpha": Choices((1, 2, 4, 8, 16)),
        "learning_rate": Range(1e-4, 5e-3, "log"),
    }


def test_all_that_a_file_can_say(search):
    plan = search(
        space="{learning_rate: {from: 1e-4, to: 1}, batch_size: {from: 4, to: 64, scale: log}, warmup: [0, 0.1], "
        "shapes: [[4, 6, 6, 4], {query: [24, 24]}, auto], r: [2, '1,2,3']}",
        epochs="3",
        seed="7",
        sampler="optuna",
        scheduler="none",
        trials="200",
        max_adapter_size="40KB",
        target_score="0.8",
        cpus_per_trial="2",
        gpus_per_trial="0.5",
    )
    assert (plan.shared["epochs"], plan.seed) == (3, 7)
    assert list(plan.domains.items()) == [
        ("shape", Choices(([4, 6, 6, 4], {"query": [24, 24]}, "auto"))),
        ("r", Choices((2, [1, 2, 3]))),
        ("learning_rate", Range(1e-4, 1.0, "log")),
        ("warmup", Choices((0.0, 0.1))),
        ("batch_size", Range(4, 64, "log", whole=True)),
    ]
    assert (plan.sampler, plan.scheduler, plan.trials, plan.max_adapter_size) == ("optuna", "none", 200, 40_000)
    assert (plan.target_score, plan.cpus_per_trial, plan.gpus_per_trial) == (0.8, 2, 0.5)


def test_flags_go_before_the_file(search):
    plan = search(trials="10", max_adapter_size="1000").override(trials=5, max_adapter_size="2KiB", target_score=0.5)
    assert (plan.trials, plan.max_adapter_size, plan.target_score) == (5, 2048, 0.5)
    assert plan.asked["max_adapter_size"] == "2KiB"
    assert search(trials="10").override().trials == 10


def test_a_trials_recipe_is_ready_to_run(search):
    recipe = search(epochs="3", seed="7").recipe({"r": 2, "alpha": 8.0}, "out")
    assert (recipe.epochs, recipe.seed, recipe.r, recipe.alpha, recipe.shape) == (3, 7, 2, 8, "auto")
    assert recipe.learning_rate == 1e-3, "the method's own"
    assert recipe.output.endswith("/out")


def test_a_named_space_leaves_out_what_the_file_fixes(search):
    plan = search(space="roberta", alpha="4")
    assert "alpha" not in plan.domains
    assert plan.shared["alpha"] == 4
    assert len(plan.notes) == 1
    assert plan.notes[0].startswith("alpha is 4.0 in ")


def test_the_space_of_a_method_is_what_it_reads(search):
    assert search(method="lora").domains.keys() == {"r", "alpha", "learning_rate"}
    assert search(method="loretta-rep").domains.keys() == {"r", "alpha", "learning_rate"}
    assert search(method="full").domains == {"learning_rate": Range(5e-6, 2.5e-4, "log")}


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"trial": "3"}, "s.yaml: unknown key 'trial': did you mean trials?"),
        ({"output": "x"}, "s.yaml: unknown key 'output': give the search's folder as `output`"),
        ({"threads": "2"}, "s.yaml: unknown key 'threads': cpus_per_trial says"),
        ({"methods": "[lora]"}, "s.yaml: unknown key 'methods': a search has one method"),
        ({"task": "3"}, "s.yaml: task is 3, and has to be text"),
        ({"task": "glue/sst3"}, "s.yaml: no task is called 'glue/sst3'"),
        ({"method": "tt-lor"}, "s.yaml: no method is called 'tt-lor': did you mean tt-lora?"),
        ({"epochs": "0"}, "s.yaml: epochs is 0, and has to be at least 1"),
        ({"trials": "0"}, "s.yaml: trials is 0, and has to be at least 1"),
        ({"trials": "1000000"}, "s.yaml: trials is 1,000,000: 10,000 are the most"),
        ({"trials": "few"}, "s.yaml: trials is 'few', and has to be a whole number"),
        ({"trials": ""}, "s.yaml: trials has no value: give one or leave it out"),
        ({"target_score": "80"}, "s.yaml: target_score is 80, and has to be above 0 and at most 1, as 0.8"),
        ({"max_adapter_size": "40TB"}, "s.yaml: max_adapter_size '40TB' is no size; write 40KB"),
        ({"max_adapter_size": "[1]"}, "s.yaml: max_adapter_size is [1], and has to be"),
        ({"cpus_per_trial": "0.5"}, "s.yaml: cpus_per_trial is 0.5, and has to be a whole number"),
        ({"gpus_per_trial": "-1"}, "s.yaml: gpus_per_trial is -1, and has to be at least 0"),
        ({"sampler": "tpe"}, "s.yaml: sampler is 'tpe', and has to be random or grid or optuna"),
        ({"space": "debreta"}, "s.yaml: space is 'debreta': did you mean deberta?"),
        ({"space": "{}"}, "s.yaml: space is empty: name what is to be searched"),
        ({"space": "[1]"}, "s.yaml: space is [1]: there are auto, deberta, roberta, llama, or keys"),
        ({"space": "{epochs: [1]}"}, "s.yaml: space: unknown key 'epochs': there are shape, r, alpha"),
        ({"space": "{r: [2]}", "r": "3"}, "s.yaml: r is in space and beside it as well: leave one of the two out"),
        ({"space": "{r: 2}"}, "s.yaml: space: r is 2, and has to be a list of values, as [1, 2], or a range"),
        ({"space": "{r: []}"}, "s.yaml: space: r is [], and has to be a list of values"),
        ({"space": "{r: [0]}"}, "s.yaml: space: r is 0: a rank is at least 1"),
        ({"space": "{dropout: [1]}"}, "s.yaml: space: dropout is 1, and has to be at least 0 and below 1"),
        ({"space": "{shape: [4, 6, 6, 4]}"}, "shape is [4, 6, 6, 4], and has to be a list of shapes, as [[16,"),
        ({"space": "{shape: {q: [4, 6]}}"}, "shape is {'q': [4, 6]}, and has to be a list of shapes"),
        ({"space": "{r: {from: 1.5, to: 4}}"}, "s.yaml: space: r: from is 1.5, and has to be a whole number"),
        ({"space": "{alpha: {from: 1}}"}, "s.yaml: space: alpha is {'from': 1}: to is missing; write {from: 1"),
        ({"space": "{alpha: {from: 1, until: 2}}"}, "space: alpha: unknown key 'until': there are from, to, scale"),
        ({"space": "{alpha: {from: 2, to: 2}}"}, "space: alpha goes from 2 to 2: the first has to be the smaller"),
        ({"space": "{alpha: {from: 0, to: 2, scale: log}}"}, "alpha goes from 0, which has no place on a log scale"),
        ({"space": "{alpha: {from: 1, to: 2, scale: ln}}"}, "scale is 'ln', and has to be linear or log"),
        (
            {"space": "{learning_rate: {from: 0, to: 1}}"},
            "learning_rate: learning_rate is 0, and has to be a number",
        ),
        ({"space": "{r: [2]}", "method": "prefix"}, "s.yaml: r means nothing to method prefix: leave it out"),
        ({"space": "llama", "method": "lora"}, "s.yaml: space llama holds shapes of method tt-lora, and the method is"),
        ({"space": "{shape: auto}", "method": "loretta-rep"}, "s.yaml: shape auto in space holds shapes of method"),
    ],
)
def test_mistakes_are_one_line_with_the_place(keys, message, search):
    with pytest.raises(UserError) as error:
        search(**keys)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_a_search_without_a_model(search, tmp_path):
    (tmp_path / "empty.yaml").write_text("task: glue/sst2")
    with pytest.raises(UserError, match=r"empty.yaml: model is missing, and has to be text"):
        type(search()).read(tmp_path / "empty.yaml")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"trials": 0}, "`trials` is 0, and has to be at least 1"),
        ({"max_adapter_size": "small"}, "`max_adapter_size` 'small' is no size; write 40KB"),
        ({"target_score": 80.0}, "`target_score` is 80.0, and has to be above 0 and at most 1"),
    ],
)
def test_wrong_arguments_are_named(arguments, message, search):
    with pytest.raises(UserError) as error:
        search().override(**arguments)
    assert str(error.value).startswith(message)


def test_columns_that_their_names_explain(search, tmp_path):
    rows = tmp_path / "rows.csv"
    rows.write_text("question,answer\nwhat,that\n")
    files = {"task": "file", "train": str(rows), "validation": str(rows)}
    plan = search(**files)
    recipe = plan.recipe({})
    assert (recipe.text_column, recipe.label_column, recipe.label_kind) == ("question", "answer", "generation")
    (note,) = plan.notes
    assert note.startswith("by the names of the columns: label_kind 'generation', text_column 'question'")
    assert search(label_kind="classification", label_column="answer", **files).notes == ()
