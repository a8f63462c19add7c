import dataclasses

import pytest

from ttlora.errors import UserError
from ttlora.finetune.recipe import Recipe, parse_shape


def make_recipe(**keys) -> Recipe:
    return Recipe(**{"model": "m", "task": "glue/sst2", "output": "o", **keys})


def test_has_a_key_for_every_flag_that_scripts_rely_on():
    flags = "model task method output data train validation epochs batch_size learning_rate max_length seed threads"
    flags += " max_train_examples targets r shape alpha resume"
    assert set(flags.split()) <= {field.name for field in dataclasses.fields(Recipe)}


def test_defaults_are_the_papers_recipe():
    recipe = make_recipe()
    assert (recipe.method, recipe.epochs, recipe.patience, recipe.batch_size) == ("tt-lora", 20, 5, 32)


@pytest.mark.parametrize(
    ("text", "shape"),
    [
        ("auto", "auto"),
        ("16,24,24,16", [16, 24, 24, 16]),
        ("[16, 24]", [16, 24]),
        ("q_proj=64,64 v_proj=16,64", {"q_proj": [64, 64], "v_proj": [16, 64]}),
    ],
)
def test_shape_is_read(text, shape):
    assert parse_shape(text) == shape
    assert make_recipe(shape=text).shape == shape


def test_ranks_and_targets_are_read_from_text():
    recipe = make_recipe(r="4,5,4", targets="query, value")
    assert (recipe.r, recipe.targets) == ([4, 5, 4], ["query", "value"])


@pytest.mark.parametrize(
    ("keys", "complaint"),
    [
        ({"epochs": 0}, "--epochs is 0, and has to be at least 1"),
        ({"batch_size": -1}, "--batch-size is -1"),
        ({"r": 0}, "--r is 0: a rank is at least 1"),
        ({"r": "4,0,4"}, "--r is 0"),
        ({"r": "four"}, "--r is 'four'"),
        ({"shape": "16,x"}, "--shape is '16,x'"),
        ({"shape": "q=8,8 v"}, "cannot read 'v'"),
        ({"learning_rate": 0.0}, "--learning-rate is 0.0"),
        ({"learning_rate": float("nan")}, "--learning-rate is nan"),
        ({"dropout": 1.0}, "--dropout is 1.0"),
        ({"warmup": -0.1}, "--warmup is -0.1"),
        ({"seed": -1}, "--seed is -1"),
        ({"threads": 0}, "--threads is 0"),
        ({"output": ""}, "--output is empty"),
    ],
)
def test_impossible_value_is_refused_by_its_flag(keys, complaint):
    with pytest.raises(UserError, match=complaint):
        make_recipe(**keys)


def test_write_and_read_give_the_same_recipe(tmp_path):
    recipe = make_recipe(shape="q_proj=64,64 v_proj=16,64", r=[4, 5, 4], learning_rate=1e-5, text_column="título")
    recipe.write(tmp_path / "recipe.yaml")
    assert Recipe.read(tmp_path / "recipe.yaml") == recipe


@pytest.mark.parametrize("text", ["- a", "model: [", "model: m", "model: m\ntask: t\noutput: o\ncolour: red"])
def test_file_that_is_no_recipe_is_refused(text, tmp_path):
    (tmp_path / "recipe.yaml").write_text(text)
    with pytest.raises(UserError, match=r"recipe\.yaml is no recipe"):
        Recipe.read(tmp_path / "recipe.yaml")


def test_with_defaults_fills_what_is_open_and_makes_paths_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "base").mkdir()
    recipe = make_recipe(model="base", data="data", r=3).with_defaults({"r": 5, "alpha": 2.0})
    assert (recipe.r, recipe.alpha) == (3, 2.0)
    assert (recipe.model, recipe.data) == (str(tmp_path / "base"), str(tmp_path / "data"))
    for name in ("org/name", "x" * 300):
        assert make_recipe(model=name).with_defaults({}).model == name
