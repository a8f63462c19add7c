import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from safetensors import SafetensorError

from tests.conftest import command
from ttlora.cli import main as cli
from ttlora.cli.main import COMMANDS, main
from ttlora.errors import RunError, UserError


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


def test_a_program_of_the_commands_name_gets_the_methods(tmp_path):
    """Importing registers, whatever the program is called."""
    (tmp_path / "ttlora.py").write_text(
        "import sys; sys.path.pop(0)\nimport ttlora, peft\nprint(peft.PeftType.TTLORA, ttlora.__version__)\n"
    )
    done = subprocess.run([sys.executable, tmp_path / "ttlora.py"], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("PeftType.TTLORA 0.")


@pytest.mark.parametrize("argument", ["--help", "--version", "trian"])
def test_answers_without_importing_torch(argument):
    script = Path(sys.executable).with_name("ttlora")
    done = subprocess.run([sys.executable, "-X", "importtime", script, argument], capture_output=True, text=True)
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines() if line.startswith("import time:")}
    assert "ttlora.cli.main" in imported
    assert "ttlora" not in imported
    assert not imported & {"torch", "peft", "transformers", "numpy"}


def test_no_library_speaks_of_its_builds():
    """Where torchao and bitsandbytes are installed, PEFT imports them; -m imports the package before the command."""
    done = subprocess.run([sys.executable, "-m", "ttlora", "--version"], capture_output=True, text=True, check=True)
    assert done.stderr == ""


def test_ctrl_c_at_the_end_leaves_the_status():
    code = "import os, signal, sys\nfrom ttlora.cli.main import main\nstatus = main()\n"
    code += "os.kill(os.getpid(), signal.SIGINT)\nsys.exit(status)"
    assert subprocess.run([sys.executable, "-c", code, "--version"], stdout=subprocess.DEVNULL).returncode == 0


@pytest.mark.parametrize("name", COMMANDS)
def test_help_of_every_command(name, capsys):
    assert main([name, "--help"]) == 0
    output = capsys.readouterr().out
    assert output.startswith(f"usage: ttlora {name} ")
    assert "--json" in output or name == "run"
    assert "typing" not in output
    assert "Args:" not in output


@pytest.mark.parametrize(
    ("error", "status", "line"),
    [
        (UserError("the shape\nis wrong"), 2, "ttlora: error: the shape is wrong"),
        (OSError(28, "No space left on device", "out"), 1, "ttlora: error: out: No space left on device"),
        (OSError(28, "No space left on device"), 1, "ttlora: error: stdout: No space left on device"),
        (OSError(5, "Input/output error"), 1, "ttlora: error: Input/output error"),
        (RunError("the disk is full"), 1, "ttlora: error: the disk is full"),
        (SafetensorError("I/O error: oh (os error 2)"), 1, "ttlora: error: No such file or directory"),
        (MemoryError(), 1, "ttlora: error: out of memory: this machine has too little for it"),
        (UserError("a name \x1b[2J\r of control"), 2, "ttlora: error: a name [2J of control"),
        (UserError("long " * 1000), 2, f"ttlora: error: {'long ' * 199}long…"),
        (KeyboardInterrupt(), 130, "ttlora: stopped"),
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


def in_shell(line: str, **environment: str) -> subprocess.CompletedProcess[str]:
    script, *_ = command()
    return subprocess.run(
        ["/bin/sh", "-c", f"exec {script} {line}"], capture_output=True, text=True, env={**os.environ, **environment}
    )


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_full_stdout(unbuffered):
    done = in_shell("--help > /dev/full", PYTHONUNBUFFERED=unbuffered)
    assert (done.returncode, done.stderr) == (1, "ttlora: error: stdout: No space left on device\n")


def test_closed_streams():
    done = in_shell("--help >&-")
    line = "ttlora: error: stdout is closed: send it to a file, or to /dev/null\n"
    assert (done.returncode, done.stdout, done.stderr) == (2, "", line)
    done = in_shell("nonsense 2>&-")
    assert (done.returncode, done.stdout, done.stderr) == (2, "", "")
    done = in_shell("--help <&- >&- 2>&-")
    assert (done.returncode, done.stdout, done.stderr) == (2, "", "")


def test_a_current_folder_that_is_gone(tmp_path):
    (tmp_path / "gone").mkdir()
    line = "plan --model roberta-base"
    script, *_ = command()
    shell = f"cd {tmp_path / 'gone'} && rmdir {tmp_path / 'gone'} && exec {script} {line}"
    done = subprocess.run(["/bin/sh", "-c", shell], capture_output=True, text=True)
    assert done.stderr == "ttlora: error: the current folder is gone: change to one that is there\n"
    assert done.returncode == 2


def test_signs_that_stdout_cannot_show(monkeypatch):
    stream = io.TextIOWrapper(io.BytesIO(), "ascii")
    monkeypatch.setattr(sys, "stdout", stream)
    assert main(["plan", "--model", "roberta-base"]) == 0
    assert b"out \\xd7 in" in stream.buffer.getvalue()


def test_a_narrow_terminal(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "1")
    assert main(["plan", "--model", "roberta-base"]) == 0
    assert capsys.readouterr().out


@pytest.mark.parametrize(("name", "status"), [("SIGTERM", 143), ("SIGHUP", 129)])
def test_signals_end_it_as_ctrl_c_does(name, status, capsys, monkeypatch):
    number = getattr(signal, name)
    cleaned = []

    def work(*_):
        try:
            os.kill(os.getpid(), number)
            time.sleep(5)
        finally:
            os.kill(os.getpid(), signal.SIGTERM)  # a terminal that is closed sends several
            cleaned.append(True)

    monkeypatch.setattr(cli, "_call", work)
    before = signal.signal(number, signal.SIG_DFL)  # the tests themselves may run under nohup
    try:
        assert main(["plan"]) == status
        assert signal.getsignal(number) is signal.SIG_DFL
    finally:
        signal.signal(number, before)
    assert cleaned
    assert capsys.readouterr().err == "ttlora: stopped\n"


def test_a_signal_that_nohup_ignores_stays_ignored(monkeypatch):
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        monkeypatch.setattr(cli, "_call", lambda *_: os.kill(os.getpid(), signal.SIGHUP) or 0)
        assert main(["plan"]) == 0
    finally:
        signal.signal(signal.SIGHUP, before)
