"""The output folder of a run: what stands in it, and who may write to it."""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout

from ttlora.adapters.weights import cast_weights
from ttlora.errors import UserError, one_line
from ttlora.finetune.data import TaskData
from ttlora.finetune.methods import Method
from ttlora.finetune.recipe import Recipe
from ttlora.finetune.tasks import Task
from ttlora.record import Record
from ttlora.whole_files import names_in, require_writable, write_json

LOCK = ".lock"


@contextmanager
def locked(path: Path, in_use: str) -> Iterator[None]:
    """Make a folder and lock it against other processes that call this.

    Args:
        path: The folder.
        in_use: The message of the error if another process holds the lock.

    Raises:
        UserError: Another process holds the lock, or the folder cannot be made.
    """
    # the system lets go of the lock when the process ends, however it ends
    lock = FileLock(path / LOCK, blocking=False)
    try:
        path.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except Timeout:
        raise UserError(in_use) from None
    except OSError as error:
        done = "written to" if path.is_dir() else "made"
        raise UserError(f"output folder {path} cannot be {done}: {error.strerror or error}") from None
    try:
        yield
    finally:
        # while it is held: whoever opened the file before and locks it now finds that it has lost its name
        with suppress(OSError):
            (path / LOCK).unlink()
        lock.release()


def content_of(path: Path) -> list[str]:
    """The names in an output folder, without the lock and without half-written files.

    Raises:
        UserError: It is a file, or cannot be made or read.
    """
    require_writable(path)
    if path.exists() and not path.is_dir():
        raise UserError(f"output {path} is a file: name a folder that is empty or not there yet")
    names = names_in(path) if path.exists() else []
    return [name for name in names if name != LOCK and not name.endswith(".tmp")]


def require_same_rows(path: Path, data: TaskData) -> None:
    """Refuse rows that differ from those that a run or a search began with; at its beginning, write them down.

    Args:
        path: The file that holds their number and a digest, in a folder that exists.
        data: The task with its rows.

    Raises:
        UserError: The rows differ, or the file is damaged.
    """
    splits = {"training": data.training, "validation": data.validation}
    now: dict[str, Any] = {"labels": list(data.task.labels)}
    now |= {name: {"rows": len(split), "sha256": split.fingerprint} for name, split in splits.items()}
    try:
        before = json.loads(path.read_text("utf-8"))
        counts = {name: before[name]["rows"] for name in splits}
    except FileNotFoundError:
        write_json(path, now)
        return
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise UserError(f"{path} is damaged ({one_line(error)}): name another output folder") from None
    for name, split in splits.items():
        if before[name] != now[name]:
            count = counts[name]
            change = f"there were {count}, and are {len(split)}" if count != len(split) else "their content differs"
            source = split.places[0].rpartition(", ")[0]
            raise UserError(
                f"{path.parent} was started with other {name} rows than {source} holds now: {change}. Restore them to "
                "go on with it, or name another output folder"
            )
    if before.get("labels") != now["labels"]:
        raise UserError(f"{path.parent} was started with the labels {before.get('labels')}, not {now['labels']}")


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
        self.progress = self.checkpoints / "progress.json"
        self.rows = self.checkpoints / "rows.json"
        self.result = self.path / "result.json"
        self.so_far = self.path / "so_far.json"

    def require_usable(self, recipe: Recipe) -> None:
        """Refuse a folder that holds anything but the run that the recipe resumes.

        Raises:
            UserError: Another run is at work in the folder, or it holds something else, or its run had another recipe;
                the message names the key.
        """
        if (self.path / LOCK).exists():
            with locked(self.path, self._in_use):
                pass
        self._require_same_recipe(recipe)

    @property
    def _in_use(self) -> str:
        return f"another run is writing to {self.path}: wait for it, or name another folder"

    def _require_same_recipe(self, recipe: Recipe) -> None:
        content = content_of(self.path)
        if not content:
            return
        if not self.recipe.exists():
            raise UserError(f"output folder {self.path} holds other files ({min(content)}): name another folder")
        if not recipe.resume and self.result.exists():
            raise UserError(f"output folder {self.path} holds a finished run: name another folder")
        if not recipe.resume:
            raise UserError(
                f"output folder {self.path} holds an unfinished run: set `resume` to go on, or name another folder"
            )
        started = Recipe.read(self.recipe).as_dict()
        for key, value in recipe.as_dict().items():
            if key != "output" and value != started[key]:
                raise UserError(
                    f"{self.path} was started with {key} {started[key]!r}, not {value!r}: "
                    "resume with the same recipe, or name another output folder"
                )

    @contextmanager
    def claim(self, recipe: Recipe, data: TaskData) -> Iterator[None]:
        """Make the folder, lock it against other runs, and write down the recipe and the rows.

        Args:
            recipe: The recipe, completed.
            data: The task with its rows.

        Raises:
            UserError: Another run is at work in it, or has been; or it holds a run that was started with another recipe
                or other rows; or it cannot be made.
        """
        with locked(self.path, self._in_use):
            # another run may have come and gone since `require_usable`
            self._require_same_recipe(recipe)
            if not self.recipe.exists():
                recipe.write(self.recipe)
            if not self.result.exists():
                self.checkpoints.mkdir(exist_ok=True)
                require_same_rows(self.rows, data)
            yield

    @property
    def peak_memory_so_far(self) -> int:
        """The peak memory of the epochs so far, for a run that is trained epoch by epoch."""
        try:
            return Record.read(self.so_far).peak_memory_bytes
        except (OSError, ValueError):
            return 0

    def read_result(self) -> Record:
        """The record of the finished run.

        Raises:
            UserError: There is none, or it is damaged.
        """
        if not self.result.is_file():
            if self.recipe.is_file():
                raise UserError(f"{self.path} holds an unfinished run: go on with ttlora train ... --resume")
            if not self.path.exists():
                raise UserError(f"{self.path} is not there")
            raise UserError(f"{self.path} is no output folder of ttlora train{self._nearby()}")
        try:
            return Record.read(self.result)
        except (OSError, ValueError) as error:
            raise UserError(str(error)) from None

    def _nearby(self) -> str:
        """Where a run is, near a folder that holds none."""
        above = self.path.absolute().parent
        if (above / "result.json").is_file():
            return f": name the folder above, {above}"
        inner = [*self.path.glob("*/result.json"), *self.path.glob("runs/*/result.json")]
        return f": name one of the folders in it, such as {min(inner).parent}" if inner else ""

    def write_adapter(self, method: Method, checkpoint: Path, dtype: torch.dtype, task: Task) -> None:
        """Make the adapter folder from a checkpoint; it appears whole or not at all."""
        temporary = self.path / "adapter.tmp"
        for folder in (temporary, self.adapter):
            shutil.rmtree(folder, ignore_errors=True)
        temporary.mkdir()
        try:
            for name, final_name in method.files.items():
                if name.endswith(".safetensors"):
                    cast_weights(checkpoint / name, temporary / final_name, dtype)
                else:
                    shutil.copyfile(checkpoint / name, temporary / final_name)
            write_json(temporary / "task.json", asdict(task))
            temporary.rename(self.adapter)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)

    def read_task(self) -> Task:
        """The task of the adapter, with its labels.

        Raises:
            UserError: The file is not there, or is damaged.
        """
        path = self.adapter / "task.json"
        try:
            return Task.from_dict(json.loads(path.read_text("utf-8")))
        except FileNotFoundError:
            raise UserError(f"{path} is not there: {self.adapter} is no whole adapter folder") from None
        except (OSError, ValueError, RecursionError) as error:
            raise UserError(f"{path} is damaged: {one_line(error)}") from None
