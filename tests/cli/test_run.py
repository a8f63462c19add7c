"""`ttlora run`: any Python command finds the methods, and is otherwise as it was."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import command

# what the program sees, and what a process sees that it starts
SEES = """
import importlib.util, json, subprocess, sys

def seen():
    import peft
    return hasattr(peft.PeftType, "TTLORA")

if __name__ == "__main__":
    found = importlib.util.find_spec("peft") is not None
    before = "ttlora" in sys.modules or "torch" in sys.modules
    child = subprocess.run(
        [sys.executable, "-c", "import sees; print(sees.seen())"], capture_output=True, text=True, check=True
    )
    print(json.dumps([found, before, seen(), child.stdout.strip(), sys.argv[1:]]))
"""


def run(*words: object, **variables: object) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {name: str(value) for name, value in variables.items()}
    return subprocess.run(command("run", *words), capture_output=True, text=True, env=environment)


def test_a_script_and_what_it_starts_find_the_methods(tmp_path: Path) -> None:
    (tmp_path / "sees.py").write_text(SEES)
    done = run("--", tmp_path / "sees.py", "--flag", "a b", "--", "-x", PYTHONPATH=tmp_path)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [True, False, True, "True", ["--flag", "a b", "--", "-x"]]


def test_what_does_not_import_peft_notices_nothing(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text("import sys; sys.own = 'run'")
    script = tmp_path / "script.py"
    script.write_text("import sys; print(sys.own, 'torch' in sys.modules, input()); sys.exit(7)")
    done = subprocess.run(
        command("run", script),
        input="typed",
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
    )
    assert (done.returncode, done.stdout, done.stderr) == (7, "run False typed\n", "")


def test_modules_and_commands(tmp_path: Path) -> None:
    assert run("-m", "this").stdout.startswith("The Zen of Python")
    assert run("-c", "print(1 + 1)").stdout == "2\n"
    # one that was installed beside this Python, which need not be on the path
    assert run(Path(sys.executable).name, "--version", PATH="/nowhere").stdout.startswith("Python 3.")


def test_a_python_without_ttlora(tmp_path: Path) -> None:
    (tmp_path / "peft.py").write_text("")
    script = tmp_path / "script.py"
    script.write_text("import sys\nsys.modules['ttlora'] = None\nimport peft\nprint('on')")
    done = run(script)
    assert (done.returncode, done.stdout) == (0, "on\n")
    assert done.stderr == f"ttlora run: {sys.executable} has PEFT, but no ttlora: install it there\n"


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["nowhere.py"], "script nowhere.py is not there"),
        (["lm_evil"], "there is no command 'lm_evil': a script ends in .py, and a module comes after -m"),
        (["--tasks", "x"], "--tasks is no command: name one after --, such as ttlora run -- lm_eval"),
    ],
)
def test_wrong_use(words: list[str], complaint: str) -> None:
    done = run(*words)
    assert (done.returncode, done.stdout, done.stderr) == (2, "", f"ttlora: error: {complaint}\n")


def test_without_a_command() -> None:
    done = run()
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("usage: ttlora run [--] COMMAND")
