from typing import Any, Literal

import pytest

from ttlora.cli.flags import parse
from ttlora.errors import UserError
from ttlora.finetune.recipe import Recipe


def command(
    directory: str, *, colour: Literal["red", "blue"] | None = None, size_limit: int = 3, json: bool = False
) -> None:
    """Paint a directory.

    All of it.

    Args:
        directory: What to paint.
        colour: Of the paint.
        size_limit: Most files.
        json: Print JSON.

    Raises:
        UserError: Never.
    """


def recipe_command(*, json: bool = False, **recipe: Any) -> None:
    """Take a recipe."""
    Recipe(**recipe)


def read(*arguments: str) -> dict[str, Any] | None:
    return parse("paint", command, "directory", arguments)


REQUIRED = ("--model", "m", "--task", "t", "--output", "o")


def read_recipe(*arguments: str) -> dict[str, Any] | None:
    return parse("cook", recipe_command, None, arguments)


def test_values_and_switches():
    assert read("here", "--size-limit", "4", "--json") == {
        "directory": "here",
        "colour": None,
        "size_limit": 4,
        "json": True,
    }
    assert read("--json", "here")["directory"] == "here"


def test_underscores_are_taken_for_hyphens():
    assert read("here", "--size_limit=4") == read("here", "--size-limit", "4")


def test_help_shows_defaults_and_no_types(capsys):
    assert read("--help") is None
    output = capsys.readouterr().out
    assert output.startswith("usage: ttlora paint DIRECTORY [OPTIONS]\n\nPaint a directory. All of it.\n")
    assert "--size-limit N" in output
    assert "(default: 3)" in output
    assert "--colour {red,blue}" in output
    assert "Raises" not in output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "DIRECTORY is missing: see ttlora paint --help"),
        (("here", "there"), "unexpected argument there: see ttlora paint --help"),
        (("here", "--size-limt", "4"), "unknown option --size-limt: did you mean --size-limit?"),
        (("here", "--size"), "unknown option --size: did you mean --size-limit?"),
        (("here", "--zzz"), "unknown option --zzz: see ttlora paint --help"),
        (("here", "--size-limit", "four"), "--size-limit is 'four', and has to be a whole number"),
        (("here", "--size-limit"), "--size-limit needs a value: see ttlora paint --help"),
        (("here", "--colour", "green"), "--colour is 'green', and has to be red or blue"),
    ],
)
def test_wrong_use_is_one_line(arguments, message):
    with pytest.raises(UserError) as caught:
        read(*arguments)
    assert str(caught.value) == message


def test_a_recipes_keys_are_flags():
    values = read_recipe(*REQUIRED, "--learning-rate", "1e-3", "--r", "4,5", "--targets", "query,value", "--resume")
    assert values == {**vars(Recipe(model="m", task="t", output="o")), "json": False} | {
        "learning_rate": 1e-3,
        "r": "4,5",
        "targets": "query,value",
        "resume": True,
    }


def test_missing_flags_are_named():
    with pytest.raises(UserError, match="--task, --output are missing: see ttlora cook --help"):
        read_recipe("--model", "m")


def test_recipe_from_yaml_and_flags_that_override_it(tmp_path):
    (tmp_path / "r.yaml").write_text("model: m\ntask: t\noutput: o\nepochs: 3\nr: [4, 5]\nlearning_rate: 1e-4\n")
    values = read_recipe("--epochs", "7", "--config", str(tmp_path / "r.yaml"))
    assert (values["epochs"], values["r"], values["learning_rate"], values["model"]) == (7, [4, 5], 1e-4, "m")


def test_printed_configuration_can_be_read_again(capsys, tmp_path):
    assert read_recipe(*REQUIRED, "--epochs", "3", "--print-config") is None
    (tmp_path / "r.yaml").write_text(capsys.readouterr().out)
    assert read_recipe("--config", str(tmp_path / "r.yaml")) == read_recipe(*REQUIRED, "--epochs", "3")


def test_written_recipe_can_be_read_again(tmp_path):
    recipe = Recipe(model="m", task="t", output="o", shape="q_proj=64,64 v_proj=16,64", r=3)
    recipe.write(tmp_path / "r.yaml")
    values = read_recipe("--config", str(tmp_path / "r.yaml"))
    values.pop("json")
    assert Recipe(**values) == recipe


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("learning_rat: 1", r"--config .*r\.yaml: unknown key 'learning_rat': did you mean learning_rate\?"),
        ("epochs: three", r"--config .*r\.yaml: epochs is 'three', and has to be a whole number"),
        ("model: [", r"--config .*r\.yaml holds no recipe in YAML"),
        ("- model", r"--config .*r\.yaml holds no recipe in YAML"),
    ],
)
def test_wrong_yaml_is_one_line(text, message, tmp_path):
    (tmp_path / "r.yaml").write_text(text + "\n")
    with pytest.raises(UserError, match=message):
        read_recipe(*REQUIRED, "--config", str(tmp_path / "r.yaml"))


def test_missing_yaml(tmp_path):
    with pytest.raises(UserError, match=r"--config .*none\.yaml is not there"):
        read_recipe("--config", str(tmp_path / "none.yaml"))


def test_a_command_may_have_a_flag_of_its_own_called_config():
    def comparing(*, config: str) -> None:
        """Compare.

        Args:
            config: What to compare, which need not be a file.
        """

    assert parse("compare", comparing, None, ["--config", "deberta-glue"]) == {"config": "deberta-glue"}


def test_a_positional_may_have_many_values():
    def reporting(results: list[str], *, output: str) -> None:
        """Report.

        Args:
            results: What is read.
            output: Where it goes.
        """

    assert parse("report", reporting, "results", ["a", "b", "--output", "o"]) == {"results": ["a", "b"], "output": "o"}
    assert parse("report", reporting, "results", ["--output", "o", "a"]) == {"results": ["a"], "output": "o"}
    with pytest.raises(UserError, match="RESULTS is missing"):
        parse("report", reporting, "results", ["--output", "o"])
