import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import command

from ttlora.cli import main as cli
from ttlora.cli.main import COMMANDS, main
from ttlora.errors import UserError


def test_overview_names_every_command(capsys):
    assert main(["--help"]) == 0
    output = capsys.readouterr().out
    assert [line.split()[0] for line in output.splitlines() if line.startswith("  ")] == list(COMMANDS)


def test_no_command_shows_the_overview_as_wrong_use(capsys):
    assert main([]) == 2
    output = capsys.readouterr()
    assert (output.out, output.err.splitlines()[0]) == ("", "usage: ttlora COMMAND [OPTIONS]")


def test_version(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("ttlora 0.")


def test_typo_gets_a_suggestion(capsys):
    assert main(["trian", "--model", "m"]) == 2
    assert capsys.readouterr().err == "ttlora: error: there is no command 'trian': did you mean train?\n"
    assert main(["xyz"]) == 2
    assert capsys.readouterr().err == "ttlora: error: there is no command 'xyz': see ttlora --help\n"


@pytest.mark.parametrize("argument", ["--help", "--version", "trian"])
def test_answers_without_importing_torch(argument):
    script = Path(sys.executable).with_name("ttlora")
    done = subprocess.run([sys.executable, "-X", "importtime", script, argument], capture_output=True, text=True)
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines() if line.startswith("import time:")}
    assert "ttlora.cli.main" in imported
    assert not imported & {"torch", "peft", "transformers", "jsonargparse", "numpy"}


@pytest.mark.parametrize("name", COMMANDS)
def test_help_of_every_command(name, capsys):
    assert main([name, "--help"]) == 0
    output = capsys.readouterr().out
    assert output.startswith(f"usage: ttlora {name} ")
    assert "--json" in output
    assert "typing" not in output
    assert "Args:" not in output


@pytest.mark.parametrize(
    ("error", "status", "line"),
    [
        (UserError("the shape\nis wrong"), 2, "ttlora: error: the shape is wrong"),
        (OSError(28, "No space left on device", "out"), 1, "ttlora: error: [Errno 28] No space left on device: 'out'"),
        (KeyboardInterrupt(), 130, "ttlora: error: interrupted"),
        (KeyError("x"), 1, "ttlora: error: unexpected KeyError: 'x' (TTLORA_TRACEBACK=1 shows where)"),
    ],
)
def test_what_goes_wrong_is_one_line(error, status, line, capsys, monkeypatch):
    def fail(*_):
        raise error

    monkeypatch.setattr(cli, "_call", fail)
    assert main(["plan"]) == status
    assert capsys.readouterr().err == line + "\n"


def test_traceback_of_a_bug_can_be_had(monkeypatch):
    def fail(*_):
        raise KeyError("x")

    monkeypatch.setattr(cli, "_call", fail)
    monkeypatch.setenv("TTLORA_TRACEBACK", "1")
    with pytest.raises(KeyError):
        main(["plan"])


def test_reader_that_leaves_early_is_no_error():
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(command("--help"), stdout=writer, stderr=subprocess.PIPE, text=True)
    os.close(writer)
    assert (done.returncode, done.stderr) == (1, "")


def test_json_is_all_of_stdout(capsys):
    assert main(["plan", "--model", "roberta-base", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["adapter_parameters"] == 21888
