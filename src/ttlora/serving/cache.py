"""TT-LoRA adapters as plain LoRA, in a folder of bounded size, for engines that read LoRA folders."""

import hashlib
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from filelock import FileLock

from ttlora.adapters.export import to_lora
from ttlora.adapters.read import CONFIG_NAME, WEIGHTS_NAME, Adapter, find_folder, read_adapter, require_tt_lora
from ttlora.adapters.write import write_adapter
from ttlora.errors import UserError
from ttlora.tuners.tt_lora import saved_update
from ttlora.values import short_repr
from ttlora.whole_files import HALF_WRITTEN, write_text

# how often an adapter is read anew that changes meanwhile
MOST_ATTEMPTS = 3
# in seconds; what is half written for longer was left by a process that was killed
LONGEST_WRITING = 3600


class LoraCache:
    """Plain LoRA adapters with the updates of TT-LoRA adapters, each in a folder that is named by what they hold.

    An adapter that changes has another name, and is expanded anew. Folders appear whole or not at all. When all are
    larger than they may be together, those go first that were asked for the longest time ago. Several processes may
    share one cache.

    Args:
        folder: Where the adapters are put; it is made where it is not there.
        most_bytes: How large all may be together.
    """

    def __init__(self, folder: str | Path, most_bytes: int) -> None:
        self.folder, self.most_bytes = Path(folder).expanduser().resolve(), most_bytes

    def expanded(self, adapter: str | Path) -> Path:
        """The folder with the plain LoRA adapter of a TT-LoRA adapter.

        Args:
            adapter: A folder with a saved TT-LoRA adapter, or the output folder of `train`.

        Raises:
            UserError: There is no such adapter, or it is damaged, or holds what plain LoRA has no place for, or would
                be larger than the cache.
            RunError: It cannot be written.
        """
        folder = find_folder(adapter)
        (self.folder / "sources").mkdir(parents=True, exist_ok=True)
        for _ in range(MOST_ATTEMPTS):
            entry = self.folder / _key_of(folder)
            with suppress(FileNotFoundError):
                os.utime(entry)
                return entry
            if self._expand(folder, entry):
                return entry
        raise UserError(f"{adapter} changes while it is read: ask again when it is written")

    def restore(self, entry: Path) -> None:
        """Put a folder of the cache back that had to make room: engines come back to what they once were told.

        Args:
            entry: A folder that `expanded` returned; any other is left alone.

        Raises:
            UserError: The adapter is not there any more, or has changed, or cannot be expanded.
            RunError: It cannot be written.
        """
        file = self._source(entry)
        if entry.parent != self.folder or not file.is_file():
            return
        source = file.read_text("utf-8")
        if self.expanded(source) != entry:
            raise UserError(f"{source} holds another adapter now than when it was asked for")

    def _expand(self, folder: Path, entry: Path) -> bool:
        """Write an adapter's plain LoRA form, unless its files do not hold any more what the entry is named by."""
        checked = read_adapter(folder)
        self._require_room(checked)
        source = self._source(entry)
        # what several ask for is expanded once
        with FileLock(source.with_suffix(".lock")):
            if not entry.is_dir():
                lora = to_lora(checked)
                if _key_of(folder) != entry.name:
                    return False
                write_adapter(entry, lora.config, lora.tensors, "An adapter of TT-LoRA, expanded to be served.")
                write_text(source, str(folder.resolve()))
        self._make_room(entry)
        return True

    def _source(self, entry: Path) -> Path:
        """The file that says of which adapter a folder was made; it stays when the folder goes."""
        return self.folder / "sources" / entry.name

    def _require_room(self, adapter: Adapter) -> None:
        """Refuse what would not fit, before any memory is taken: a file of a few cores can claim any sizes."""
        config, size = require_tt_lora(adapter, "export"), 0
        for name in adapter.modules:
            shape = saved_update(config, name).shape
            size += 4 * shape.factor_rank * (shape.out_features + shape.in_features)
        if size > self.most_bytes:
            raise UserError(
                f"{adapter.folder} takes {size:,} bytes as plain LoRA, more than the {self.most_bytes:,} of the whole "
                "cache: raise TTLORA_CACHE_SIZE, if this is right"
            )

    def _make_room(self, kept: Path) -> None:
        with FileLock(self.folder / ".lock"):
            sizes = {entry: _size(entry) for entry in self._entries()}
            oldest_first = sorted(sizes, key=_last_use)
            total = sum(sizes.values())
            for entry in oldest_first:
                if total <= self.most_bytes:
                    break
                if entry != kept:
                    # it is gone at once, and not file by file
                    going = entry.with_name(entry.name.join(HALF_WRITTEN))
                    with suppress(OSError):
                        entry.rename(going)
                        shutil.rmtree(going)
                        total -= sizes[entry]

    def _entries(self) -> Iterator[Path]:
        begin, _ = HALF_WRITTEN
        for entry in self.folder.iterdir():
            if entry.name.startswith(begin):
                if time.time() - _last_use(entry) > LONGEST_WRITING:
                    shutil.rmtree(entry, ignore_errors=True)
            elif (entry / CONFIG_NAME).is_file():
                yield entry


def _key_of(folder: Path) -> str:
    """A digest of what the adapter's files hold."""
    digest = hashlib.sha256()
    try:
        for name in (CONFIG_NAME, WEIGHTS_NAME):
            with (folder / name).open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
    except OSError as error:
        raise UserError(f"{short_repr(error.filename)} cannot be read: {error.strerror}") from None
    return digest.hexdigest()[:32]


def _size(entry: Path) -> int:
    total = 0
    for file in entry.iterdir():
        with suppress(FileNotFoundError):
            total += file.stat().st_size
    return total


def _last_use(entry: Path) -> float:
    try:
        return entry.stat().st_mtime
    except FileNotFoundError:
        return 0.0
