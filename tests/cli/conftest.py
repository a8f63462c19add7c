"""What the commands are tested with: a finished run, and a way to call the command line."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from ttlora.cli.main import main
from ttlora.finetune.recipe import Recipe
from ttlora.finetune.run import train


@dataclass
class Outcome:
    status: int
    out: str
    err: str


@pytest.fixture
def ttlora(capsys: pytest.CaptureFixture[str]) -> Callable[..., Outcome]:
    """The command line, in this process."""

    def call(*arguments: object) -> Outcome:
        capsys.readouterr()
        status = main([str(argument) for argument in arguments])
        return Outcome(status, *capsys.readouterr())

    return call


@pytest.fixture(scope="session")
def finished(bert: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output folder of a finished run; not to be changed."""
    output = tmp_path_factory.mktemp("finished") / "out"
    keys = {"task": "glue/sst2", "epochs": 1, "batch_size": 8, "learning_rate": 0.02, "threads": 1}
    train(Recipe(model=str(bert), data=str(data), output=str(output), **keys), quiet=True)
    return output
