"""TT-LoRA adapters as plain LoRA, in a folder of bounded size, for engines that read LoRA folders."""

import hashlib
import os
import shutil
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock

from ttlora.adapters.export import lora_bytes, to_lora
from ttlora.adapters.read import CONFIG_NAME, WEIGHTS_NAME, Adapter, find_folder, read_adapter
from ttlora.adapters.write import write_adapter
from ttlora.errors import UserError
from ttlora.values import short_repr
from ttlora.whole_files import HALF_WRITTEN, write_text

# how often an adapter is read anew that changes meanwhile
MOST_ATTEMPTS = 3
# of a config, and of the names in a file of tensors: both take far more memory than room on disk. Those of LLaMA2-7B's
# query and value have 8 kB
LARGEST_TEXT = 2**20
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
        self._sizes: dict[str, int] = {}

    def expanded(self, adapter: str | Path) -> Path:
        """The folder with the plain LoRA adapter of a TT-LoRA adapter.

        Args:
            adapter: A folder with a saved TT-LoRA adapter, or the output folder of `train`.

        Raises:
            UserError: There is no such adapter, or it is damaged, or holds what plain LoRA has no place for, or is or
                would be larger than the cache.
            RunError: It cannot be written.
        """
        folder = find_folder(adapter)
        self.require_bounded(folder)
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

    def require_bounded(self, folder: Path) -> None:
        """Refuse what would take long to read, or much memory, before it is read: a pipe, a file of holes, many names.

        Args:
            folder: The folder with the two files of an adapter.

        Raises:
            UserError: A file is none, or is too large.
        """
        config, weights = folder / CONFIG_NAME, folder / WEIGHTS_NAME
        with _reading():
            for file, largest in ((config, LARGEST_TEXT), (weights, self.most_bytes)):
                status = file.stat()
                if not stat.S_ISREG(status.st_mode):
                    raise UserError(f"{file} is no file")
                if status.st_size > largest:
                    raise UserError(f"{file} has {status.st_size:,} bytes, and {largest:,} may be served")
            with weights.open("rb") as content:
                header = int.from_bytes(content.read(8), "little")
        if header > LARGEST_TEXT:
            raise UserError(f"{weights} names tensors on {header:,} bytes, and {LARGEST_TEXT:,} may be served")

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
                # first, since what has none is never removed
                write_text(source, str(folder.resolve()))
                write_adapter(entry, lora.config, lora.tensors, "An adapter of TT-LoRA, expanded to be served.")
        self._make_room(entry)
        return True

    def _source(self, entry: Path) -> Path:
        """The file that says of which adapter a folder was made; it stays when the folder goes."""
        return self.folder / "sources" / entry.name

    def _require_room(self, adapter: Adapter) -> None:
        """Refuse what would not fit, before any memory is taken."""
        if (size := lora_bytes(adapter)) > self.most_bytes:
            raise UserError(
                f"{adapter.folder} takes {size:,} bytes as plain LoRA, more than the {self.most_bytes:,} of the whole "
                "cache: raise TTLORA_CACHE_SIZE, if this is right"
            )

    def _make_room(self, kept: Path) -> None:
        with FileLock(self.folder / ".lock"):
            last_uses = dict(self._entries())
            # who is named by what it holds never changes its size
            self._sizes = {name: self._sizes.get(name) or _size(self.folder / name) for name in last_uses}
            total = sum(self._sizes.values())
            for name in sorted(last_uses, key=last_uses.__getitem__):
                if total <= self.most_bytes:
                    break
                if name != kept.name:
                    # it is gone at once, and not file by file
                    going = self.folder / name.join(HALF_WRITTEN)
                    with suppress(OSError):
                        (self.folder / name).rename(going)
                        shutil.rmtree(going)
                        total -= self._sizes[name]

    def _entries(self) -> Iterator[tuple[str, float]]:
        """The name of each adapter of ours, and when it was asked for last; what else stands here is left alone."""
        begin, _ = HALF_WRITTEN
        ours = set(os.listdir(self.folder / "sources"))
        with os.scandir(self.folder) as found:
            for entry in found:
                try:
                    last_use = entry.stat().st_mtime
                except FileNotFoundError:
                    continue
                if entry.name.startswith(begin):
                    if time.time() - last_use > LONGEST_WRITING:
                        shutil.rmtree(entry, ignore_errors=True)
                elif entry.name in ours:
                    yield entry.name, last_use


def _key_of(folder: Path) -> str:
    """A digest of what the adapter's files hold."""
    digest = hashlib.sha256()
    with _reading():
        for name in (CONFIG_NAME, WEIGHTS_NAME):
            with (folder / name).open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()[:32]


@contextmanager
def _reading() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(f"{short_repr(error.filename)} cannot be read: {error.strerror}") from None


def _size(entry: Path) -> int:
    total = 0
    for file in entry.iterdir():
        with suppress(FileNotFoundError):
            total += file.stat().st_size
    return total
