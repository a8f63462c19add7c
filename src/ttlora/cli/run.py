"""`ttlora run`: any Python command, with the methods registered with PEFT."""

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from ttlora.errors import UserError

USAGE = """usage: ttlora run [--] COMMAND [ARGUMENTS ...]

Run a Python command with TT-LoRA and the other methods registered with PEFT, so that it loads
their adapters as it loads LoRA's; also in the Python processes that it starts.

  COMMAND    a command such as lm_eval or trl, a script such as train.py, or -m and a module

  ttlora run -- lm_eval --model hf --model_args pretrained=MODEL,peft=ADAPTER --tasks TASK
  ttlora run -- train.py --epochs 3
  ttlora run -- -m torch.distributed.run --nproc-per-node 2 train.py"""


def run(arguments: Sequence[str]) -> int:
    """Run a Python command in the place of this one.

    Args:
        arguments: The command and its arguments, after "--" or without.

    Returns:
        The command's exit status, where the system cannot put it in this one's place.

    Raises:
        UserError: There is no such command or script.
    """
    if list(arguments) in (["-h"], ["--help"]):
        print(USAGE)
        return 0
    words = list(arguments[1:] if arguments[:1] == ["--"] else arguments)
    if not words:
        print(USAGE, file=sys.stderr)
        return 2
    command = _command(words)
    environment = os.environ | {"PYTHONPATH": _python_path()}
    if os.name != "nt":
        sys.stdout.flush()
        os.execve(command[0], command, environment)
    return subprocess.run(command, env=environment).returncode


def _command(words: list[str]) -> list[str]:
    """The words with the file of the program that runs them."""
    first = words[0]
    if first in ("-m", "-c"):
        return [sys.executable, *words]
    if first.startswith("-"):
        raise UserError(f"{first} is no command: name one after --, such as ttlora run -- lm_eval")
    if first.endswith(".py"):
        if not os.path.isfile(first):
            raise UserError(f"script {first} is not there")
        return [sys.executable, *words]
    # where this Python is, what was installed with it comes first
    of_this_python = os.pathsep.join([os.path.dirname(sys.executable), os.environ.get("PATH", os.defpath)])
    program = shutil.which(first, path=of_this_python)
    if program is None:
        raise UserError(f"there is no command {first!r}: a script ends in .py, and a module comes after -m")
    return [program, *words[1:]]


def _python_path() -> str:
    """The variable PYTHONPATH with the folder from which Python registers the methods at its start."""
    folder = Path(__file__).parents[1] / "integrations" / "at_startup"
    return os.pathsep.join(filter(None, [str(folder), os.environ.get("PYTHONPATH")]))
