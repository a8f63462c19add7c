import dataclasses
from datetime import date
from pathlib import Path

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from ttlora.errors import UserError
from ttlora.finetune.recipe import Recipe
from ttlora.text_forms import parse_shape


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
        ({"epochs": 0}, "`epochs` is 0, and has to be at least 1"),
        ({"batch_size": -1}, "`batch_size` is -1"),
        ({"r": 0}, "`r` is 0: a rank is at least 1"),
        ({"r": "4,0,4"}, "`r` is 0"),
        ({"r": "four"}, "`r` is 'four'"),
        ({"shape": "16,x"}, "`shape` is '16,x'"),
        ({"shape": "q=8,8 v"}, "cannot read 'v'"),
        ({"learning_rate": 0.0}, "`learning_rate` is 0.0"),
        ({"learning_rate": float("nan")}, "`learning_rate` is nan"),
        ({"dropout": 1.0}, "`dropout` is 1.0"),
        ({"warmup": -0.1}, "`warmup` is -0.1"),
        ({"seed": -1}, "`seed` is -1"),
        ({"threads": 0}, "`threads` is 0"),
        ({"output": ""}, "`output` is empty"),
        ({"text_column": ""}, "`text_column` is empty"),
        ({"targets": " , "}, "`targets` is empty"),
        ({"choice_columns": []}, "`choice_columns` is empty"),
        ({"answers": "0= 1=yes"}, "`answers` holds an empty text"),
        ({"answers": "0=no 0=yes"}, "`answers` is '0=no 0=yes': '0' is there twice"),
        ({"answers": "0=don't"}, '`answers` is "0=don\'t": No closing quotation'),
        ({"shape": "q=8,8 q=4,16"}, "'q' is there twice"),
        ({"settings": "a=[1"}, r"`settings` is 'a=\[1': cannot read '\[1'"),
        ({"settings": "{a: 1, a: 2}"}, "key 'a' is there twice"),
        ({"threads": 100_000}, "`threads` is 100000, and has to be at most 1,024"),
        ({"epochs": 10**12}, "`epochs` is 1000000000000, and has to be at most 2,147,483,647"),
        ({"batch_size": 2**31}, "`batch_size` is 2147483648, and has to be at most 1,048,576"),
        ({"max_length": 10**400}, "`max_length` is 1000.*0000, and has to be at most"),
        ({"r": 2**40}, "`r` is 1099511627776: a rank is at most 2,147,483,647"),
        ({"alpha": 10**400}, "`alpha` is 1000.*000, and has to be a finite number"),
        ({"alpha": float("inf")}, "`alpha` is inf, and has to be a finite number"),
        ({"model": "a\ud83d"}, r"`model` is 'a\\ud83d', which is no UTF-8 text: \\ud83d is half a character"),
        ({"prompt": "{text}\ude00"}, "`prompt` is .* is half a character"),
        ({"answers": {"0": "\ud83d", "1": "b"}}, "`answers` is .* is half a character"),
        ({"output": "a\0b"}, "`output` is 'a.*b': no text here can hold a character of code 0"),
    ],
)
def test_impossible_value_is_refused_by_its_flag(keys, complaint):
    with pytest.raises(UserError, match=complaint):
        make_recipe(**keys)


@pytest.mark.parametrize(
    ("keys", "complaint"),
    [
        ({"epochs": True}, "`epochs` is True, and has to be a whole number"),
        ({"epochs": 2.0}, "`epochs` is 2.0, and has to be a whole number"),
        ({"epochs": "3"}, "`epochs` is '3', and has to be a whole number"),
        ({"epochs": None}, "`epochs` has no value: give one or leave it out"),
        ({"learning_rate": "1e-3"}, "`learning_rate` is '1e-3', and has to be a number"),
        ({"learning_rate": [1e-3]}, r"`learning_rate` is \[0.001\], and has to be a number"),
        ({"resume": 1}, "`resume` is 1, and has to be true or false"),
        ({"model": 7}, "`model` is 7, and has to be text: put text in quotes"),
        ({"text_column": False}, "`text_column` is False, and has to be text: put text in quotes"),
        ({"text_column": date(2020, 1, 1)}, "`text_column` is datetime.date.*, and has to be text: put text in quotes"),
        ({"answers": {"0": False}}, "`answers` of '0' is False, and has to be text: put text in quotes"),
        ({"answers": {0: 1.5}}, "`answers` of '0' is 1.5, and has to be text: put text in quotes"),
        ({"answers": {True: "yes"}}, "`answers` of a name is True, and has to be text: put text in quotes"),
        ({"answers": {0: "a", "0": "b"}}, "`answers` has a name twice, as a number and as text"),
        ({"targets": ["query", 7]}, r"`targets` is \['query', 7\], and has to be text or a list of names: put text in"),
        ({"choice_columns": [["a"]]}, "`choice_columns` is"),
        ({"r": [4, True]}, r"`r` is \[4, True\], and has to be a whole number or a list of whole numbers"),
        ({"r": 4.0}, "`r` is 4.0"),
        ({"shape": [8.0, 4]}, r"`shape` is \[8.0, 4\]"),
        ({"shape": {"query": 8}}, "`shape` of 'query' is 8, and has to be a list of whole numbers"),
        ({"scoring": "words"}, "`scoring` is 'words', and has to be head or prompt"),
        ({"settings": 7}, "`settings` is 7"),
        ({"settings": ["a"]}, "`settings` is"),
    ],
)
def test_value_of_another_type_is_refused(keys, complaint):
    with pytest.raises(UserError, match=complaint) as caught:
        make_recipe(**keys)
    assert "\n" not in str(caught.value)


def test_a_huge_value_is_refused_in_a_short_line():
    nested: list = []
    for _ in range(200):
        nested = [nested, nested]
    with pytest.raises(UserError, match="`text_column` is ") as caught:
        make_recipe(text_column=nested)
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize(
    ("text", "answers"),
    [
        ("0=no 1=yes", {"0": "no", "1": "yes"}),
        ("a=null b=007 c=1.50 d=~", {"a": "null", "b": "007", "c": "1.50", "d": "~"}),
        ("007='{a: b}' true=\"1e3, yes\"", {"007": "{a: b}", "true": "1e3, yes"}),
    ],
)
def test_answers_are_text_to_the_letter(text, answers):
    assert make_recipe(answers=text).answers == answers


def test_settings_hold_values():
    recipe = make_recipe(settings="a=1 b=1e-2 c=yes d=[1,2] e='{q: 3}' f=text")
    assert recipe.settings == {"a": 1, "b": 0.01, "c": True, "d": [1, 2], "e": {"q": 3}, "f": "text"}
    assert make_recipe(settings="{a: 1, b: {q: [1, 2]}}").settings == {"a": 1, "b": {"q": [1, 2]}}


def test_names_that_yaml_takes_for_numbers_are_names():
    recipe = make_recipe(answers={0: "no", 1: "yes"}, shape={0: [8, 4]})
    assert (recipe.answers, recipe.shape) == ({"0": "no", "1": "yes"}, {"0": [8, 4]})


def test_one_rank_in_text_is_one_rank():
    assert make_recipe(r="5").r == 5
    assert make_recipe(r="[5]").r == [5]


def test_write_and_read_give_the_same_recipe(tmp_path):
    recipe = make_recipe(shape="q_proj=64,64 v_proj=16,64", r=[4, 5, 4], learning_rate=1e-5, text_column="título")
    recipe.write(tmp_path / "recipe.yaml")
    assert Recipe.read(tmp_path / "recipe.yaml") == recipe


@pytest.mark.parametrize(
    "text",
    [
        "",
        "- a",
        "model: [",
        "model: m",
        "model: m\ntask: t\noutput: o\ncolour: red",
        "model: m\nmodel: n\ntask: t\noutput: o",
        "model: m\ntask: t\noutput: o\nepochs: yes",
        "model: m\ntask: t\noutput: o\nthreads: 5000",
        "model: m\ntask: t\noutput: o\nseed:",
    ],
)
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


def test_home_of_nobody_is_a_name_like_any_other(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert make_recipe(train="~nobody-at-all/x").with_defaults({}).train == str(tmp_path / "~nobody-at-all/x")


def test_recipes_that_were_written_by_plain_yaml_mean_the_same(tmp_path):
    text = "model: '007'\ntask: t\noutput: o\nanswers:\n  '0': 'no'\n  '1': 'yes'\nlearning_rate: 1.0e-05\n"
    (tmp_path / "recipe.yaml").write_text(text)
    recipe = Recipe.read(tmp_path / "recipe.yaml")
    assert (recipe.model, recipe.answers, recipe.learning_rate) == ("007", {"0": "no", "1": "yes"}, 1e-5)


def test_paths_of_python_are_names():
    recipe = make_recipe(output=Path("out"), train=Path("a") / "b.csv")
    assert (recipe.output, recipe.train) == ("out", "a/b.csv")


@given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1))
def test_any_text_comes_back_from_the_file(tmp_path_factory, text):
    assume(text.strip())
    recipe = make_recipe(prompt=text, answers={text: text}, settings={text: [text]})
    path = tmp_path_factory.mktemp("recipes") / "recipe.yaml"
    recipe.write(path)
    assert Recipe.read(path) == recipe


@pytest.mark.parametrize(
    ("kind", "epochs", "batch_size", "max_length"),
    [(None, 20, 32, 128), ("regression", 20, 32, 128), ("generation", 3, 16, 1024), ("text", 3, 16, 1024)],
)
def test_defaults_follow_the_kind_of_task(kind, epochs, batch_size, max_length):
    recipe = Recipe(model="m", task="file", output="o", label_kind=kind)
    assert (recipe.epochs, recipe.batch_size, recipe.max_length) == (epochs, batch_size, max_length)
    written = recipe.as_dict()
    assert {type(written[name]) for name in ("epochs", "batch_size", "max_length")} == {int}
    given = Recipe(model="m", task="file", output="o", label_kind=kind, epochs=20, max_length=128)
    assert (given.epochs, given.batch_size, given.max_length) == (20, batch_size, 128)
