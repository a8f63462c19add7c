"""The output folder of a run: what stands in it, and who may write to it."""

import fcntl
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from ttlora.errors import UserError
from ttlora.finetune.methods import Method
from ttlora.finetune.recipe import Recipe
from ttlora.finetune.tasks import Task
from ttlora.finetune.weights import cast_weights
from ttlora.record import Record


@contextmanager
def locked(path: Path, in_use: str) -> Iterator[None]:
    """Make a folder, and keep others who do the same out of it.

    Args:
        path: The folder.
        in_use: The complaint if somebody else is at work in it.

    Raises:
        UserError: Somebody is, or the folder cannot be made.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        handle = os.open(path, os.O_RDONLY)
    except OSError as error:
        raise UserError(f"output folder {path} cannot be made: {error.strerror}") from None
    try:
        try:
            # the system lets go of the lock when the process ends, however it ends
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(in_use) from None
        yield
    finally:
        os.close(handle)


def content_of(path: Path) -> list[str]:
    """What an output folder holds, apart from files that are half written.

    Raises:
        UserError: It is a file.
    """
    if path.exists() and not path.is_dir():
        raise UserError(f"output {path} is a file: name a folder that is empty or not there yet")
    return [item.name for item in path.iterdir() if item.suffix != ".tmp"] if path.exists() else []


class RunFolder:
    """The output folder of a run.

    ``recipe.yaml`` is written first and ``result.json`` last: with the one and without the other, the folder holds a
    run that can be resumed. ``so_far.json`` is the record of a run that goes on epoch by epoch, if it ended now.

    Args:
        path: The folder; it need not be there yet.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.adapter = self.path / "adapter"
        self.recipe = self.path / "recipe.yaml"
        self.log = self.path / "log.jsonl"
        self.checkpoints = self.path / "checkpoints"
        self.result = self.path / "result.json"
        self.so_far = self.path / "so_far.json"

    def require_usable(self, recipe: Recipe) -> None:
        """Refuse a folder that holds something else than the run to be resumed.

        Raises:
            UserError: The folder is in use, or its run had another recipe; the message names the key.
        """
        content = content_of(self.path)
        if not content:
            return
        if not self.recipe.exists():
            raise UserError(f"output folder {self.path} holds other files ({min(content)}): name another folder")
        if not recipe.resume and self.result.exists():
            raise UserError(f"output folder {self.path} holds a finished run: name another folder")
        if not recipe.resume:
            raise UserError(
                f"output folder {self.path} holds an unfinished run: add --resume to go on with it, or name another"
            )
        started = Recipe.read(self.recipe).as_dict()
        for key, value in recipe.as_dict().items():
            if key != "output" and value != started[key]:
                raise UserError(
                    f"{self.path} was started with {key} {started[key]!r}, not {value!r}: "
                    "resume with the same recipe, or name another output folder"
                )

    @contextmanager
    def claim(self, recipe: Recipe) -> Iterator[None]:
        """Make the folder, keep other runs out of it, and write the recipe down.

        Raises:
            UserError: Another run is at work in it, or it cannot be made.
        """
        with locked(self.path, f"another run is writing to {self.path}: wait for it, or name another folder"):
            if not self.recipe.exists():
                recipe.write(self.recipe)
            yield

    def read_result(self) -> Record:
        """The record of the finished run.

        Raises:
            UserError: There is none, or it is damaged.
        """
        if not self.result.is_file():
            if self.recipe.is_file():
                raise UserError(f"{self.path} holds an unfinished run: go on with ttlora train ... --resume")
            raise UserError(f"{self.path} holds no run of ttlora train")
        try:
            return Record.read(self.result)
        except (OSError, ValueError) as error:
            raise UserError(str(error)) from None

    def write_adapter(self, method: Method, checkpoint: Path, dtype: torch.dtype, task: Task) -> None:
        """Make the adapter folder from a checkpoint; it appears whole or not at all."""
        temporary = self.path / "adapter.tmp"
        for folder in (temporary, self.adapter):
            shutil.rmtree(folder, ignore_errors=True)
        temporary.mkdir()
        for name, final_name in method.files.items():
            if name.endswith(".safetensors"):
                cast_weights(checkpoint / name, temporary / final_name, dtype)
            else:
                shutil.copyfile(checkpoint / name, temporary / final_name)
        (temporary / "task.json").write_text(json.dumps(asdict(task), indent=2, ensure_ascii=False) + "\n", "utf-8")
        temporary.rename(self.adapter)

    def read_task(self) -> Task:
        """The task of the adapter, its labels known.

        Raises:
            UserError: The file is not there, or is damaged.
        """
        path = self.adapter / "task.json"
        try:
            content = json.loads(path.read_text("utf-8"))
            values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in content.items()}
            return Task(**values)
        except FileNotFoundError:
            raise UserError(f"{path} is not there: {self.adapter} is no whole adapter folder") from None
        except (OSError, ValueError, TypeError, AttributeError) as error:
            raise UserError(f"{path} is damaged: {error}") from None
