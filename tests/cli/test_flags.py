from typing import Any, Literal, get_type_hints

import pytest

from ttlora.cli.flags import PATHS, parse
from ttlora.errors import UserError
from ttlora.finetune.recipe import Recipe
from ttlora.values import kinds


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
        (("here", "--size-limit", "4", "--size_limit=5"), "--size-limit is there twice: give it once"),
        (("here", "--sl", "4"), "unknown option --sl: did you mean --size-limit?"),
        (("",), "DIRECTORY is empty: name a file or a folder"),
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


@pytest.mark.parametrize(
    ("option", "meant"),
    [("--lr", "--learning-rate"), ("--bs", "--batch-size"), ("-m", "--model"), ("--epoch", "--epochs")],
)
def test_an_unknown_option_is_told_from_its_words(option, meant):
    with pytest.raises(UserError, match=f"unknown option {option}: did you mean {meant}"):
        read_recipe(*REQUIRED, option, "1")


def test_help_shows_what_stands_for_a_value(capsys):
    assert read_recipe("--help") is None
    told = capsys.readouterr().out
    assert "--rows-at-once N|auto" in told
    assert "--push-to-hub NAME" in told


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


def test_printed_configuration_holds_what_a_file_says(capsys, tmp_path):
    text = "model: m\ntask: t\noutput: '1e3'\nanswers: {0: 'no', 1: 'yes'}\nsettings: {a: {b: 1e-2}}\nprompt: 'null'\n"
    (tmp_path / "r.yaml").write_text(text)
    assert read_recipe("--config", str(tmp_path / "r.yaml"), "--print-config") is None
    (tmp_path / "printed.yaml").write_text(capsys.readouterr().out)
    values = read_recipe("--config", str(tmp_path / "printed.yaml"))
    assert values == read_recipe("--config", str(tmp_path / "r.yaml"))
    assert (values["answers"], values["settings"]) == ({0: "no", 1: "yes"}, {"a": {"b": 1e-2}})
    assert (values["output"], values["prompt"]) == ("1e3", "null")


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
        ("", r"--config .*r\.yaml holds no recipe in YAML: it holds no keys with values"),
        ("epochs: 3\nepochs: 4", r"--config .*r\.yaml holds no recipe in YAML: key 'epochs' is there twice, line 2"),
        ("epochs: 010", "YAML takes 010 for 8"),
        ("epochs: 1.0", "epochs is 1.0, and has to be a whole number"),
        ("seed:", "seed has no value: give one or leave it out"),
        ("resume: maybe", "resume is 'maybe', and has to be true or false"),
        ("text_column: 007", "YAML takes 007 for 7: write that, or text in quotes"),
        ("text_column: no", "text_column is False, and has to be text: put text in quotes"),
        ("prompt: 1.50", "prompt is 1.5, and has to be text: put text in quotes"),
        ("label_column: 2020-01-01", "has to be text: put text in quotes"),
        ("answers: {0: no, 1: yes}", "answers of 0 is False, and has to be text: put text in quotes"),
        ("answers: {0: , 1: a}", "answers of 0 has no value"),
        (
            "choice_columns: [a, no]",
            r"choice_columns is \['a', False\], and has to be text or a list of names: put text",
        ),
        ("targets: [1]", r"targets is \[1\], and has to be text or a list of names: put text in quotes"),
        ("answers: &a {x: *a}", "it holds itself, or more than 131,072 values"),
        ("config: other.yaml", "unknown key 'config'"),
        ("print_config: yes", "unknown key 'print_config'"),
    ],
)
def test_wrong_yaml_is_one_line(text, message, tmp_path):
    (tmp_path / "r.yaml").write_text(text + "\n")
    with pytest.raises(UserError, match=message):
        read_recipe(*REQUIRED, "--config", str(tmp_path / "r.yaml"))


def test_yaml_that_is_no_file_of_text(tmp_path):
    (tmp_path / "r.yaml").write_bytes("model: m\n".encode("utf-16"))
    with pytest.raises(UserError, match=r"r\.yaml holds no recipe in YAML: it is UTF-16: save it as UTF-8"):
        read_recipe("--config", str(tmp_path / "r.yaml"))
    with pytest.raises(UserError, match="holds no recipe in YAML: it is no file"):
        read_recipe("--config", str(tmp_path))
    with pytest.raises(UserError, match="--config is there twice"):
        read_recipe("--config", "a.yaml", "--config", "b.yaml")


TEXTS = ("null", "~", "true", "no", "007", "1e3", "1.50", "2020-01-01", "#x", "{a: b}", "[a, b]", "- a", "'x'", " ", "")


@pytest.mark.parametrize("text", TEXTS)
def test_text_stays_text_to_the_letter(text):
    flags = [key for key, hint in get_type_hints(Recipe).items() if str in kinds(hint) and key not in ("r", "shape")]
    flags = [key for key in flags if text or key not in PATHS]
    assert {"text_column", "prompt", "answers", "targets", "settings"} <= set(flags)
    paths = () if text else ("--model", "m", "--output", "o")
    values = read_recipe(*paths, *(f"--{key.replace('_', '-')}={text}" for key in flags))
    assert {key: values[key] for key in flags} == dict.fromkeys(flags, text)
    if text:
        assert read(text) == {"directory": text, "colour": None, "size_limit": 3, "json": False}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--epochs", "0x10"), "--epochs is '0x10', and has to be a whole number"),
        (("--epochs", "12:30"), "--epochs is '12:30', and has to be a whole number"),
        (("--epochs", "true"), "--epochs is 'true', and has to be a whole number"),
        (("--epochs", "null"), "--epochs is 'null', and has to be a whole number"),
        (("--epochs", "1e3"), "--epochs is '1e3', and has to be a whole number"),
        (("--alpha", "[1]"), "--alpha is '[1]', and has to be a number"),
        (("--alpha", "nan"), "--alpha is 'nan', and has to be a number"),
        (("--alpha", "1e400"), "--alpha is '1e400', and has to be a number"),
        (("--scoring", "null"), "--scoring is 'null', and has to be head or prompt"),
        (("--json=1",), "--json takes no value, and was given '1'"),
        (("--prompt", "caf\udce9"), "'caf\\udce9' is not UTF-8 text"),
    ],
)
def test_values_are_read_strictly(arguments, message):
    with pytest.raises(UserError) as caught:
        read_recipe(*REQUIRED, *arguments)
    assert str(caught.value) == message


def test_text_may_begin_with_a_hyphen():
    values = read_recipe(
        *REQUIRED, "--answers", "-1=bad", "--prompt", "-", "--alpha", "-.5", "--text-column", "-x", "--json"
    )
    assert (values["answers"], values["prompt"], values["alpha"], values["text_column"]) == ("-1=bad", "-", -0.5, "-x")
    with pytest.raises(UserError, match="--prompt needs a value"):
        read_recipe(*REQUIRED, "--prompt", "--json")


def test_numbers_of_flags_are_decimal():
    values = read_recipe(*REQUIRED, "--epochs", "010", "--alpha", ".5", "--r", "5", "--learning-rate", "1e-2")
    assert (values["epochs"], values["alpha"], values["r"], values["learning_rate"]) == (10, 0.5, 5, 1e-2)


def test_missing_yaml(tmp_path):
    with pytest.raises(UserError, match="--config is empty: name a YAML file"):
        read_recipe("--config", "")
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
