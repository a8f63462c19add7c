"""Files and folders appear whole or not at all."""

import errno
import os
from pathlib import Path

import pytest

from ttlora.errors import RunError, UserError
from ttlora.whole_files import require_free, require_writable, whole_folder, write_json, write_text


def fill(output: Path, **files: str) -> None:
    with whole_folder(output, last="last") as folder:
        for name, text in files.items():
            (folder / name).write_text(text)


def replace(output: Path, *names: str) -> None:
    with whole_folder(output, "page", lambda _: None) as folder:
        for name in names:
            (folder / name).write_text("new")


def content(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(params=["new", "in new folders", "empty", "link", "trailing", "dots", "leftover"])
def output(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Folders that can be filled, as people name them."""
    kind = request.param
    if kind in ("empty", "trailing", "leftover"):
        (tmp_path / "out").mkdir()
    if kind == "leftover":
        (tmp_path / "out" / ".ttlora-0123.tmp").mkdir()
    if kind == "link":
        (tmp_path / "real").mkdir()
        (tmp_path / "out").symlink_to("real")
    names = {"in new folders": "a/b/out", "trailing": "out/", "dots": "nowhere/../out"}
    return f"{tmp_path}/{names.get(kind, 'out')}"


def test_a_folder_is_filled(output: str) -> None:
    fill(output, last="1", first="2")
    assert content(Path(os.path.normpath(output))) == {"last": "1", "first": "2"}
    assert not Path(os.path.normpath(output)).parent.joinpath("nowhere").exists()


def test_a_failure_leaves_nothing(output: str, tmp_path: Path) -> None:
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(TypeError):
        fill(output, last="1", first=5)
    assert sorted(tmp_path.rglob("*")) == before


def test_the_last_file_is_the_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names: list[str] = []
    rename = Path.rename
    monkeypatch.setattr(Path, "rename", lambda self, to: names.append(self.name) or rename(self, to))
    (tmp_path / "out").mkdir()
    fill(tmp_path / "out", last="1", a="2", z="3")
    assert names == ["a", "z", "last"]


@pytest.mark.parametrize("name", ["old", "page", "a", "last"])
def test_a_folder_that_cannot_be_filled_stays_as_it_was(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "old").write_text("1")
    (tmp_path / "page").write_text("2")
    rename = Path.rename
    failed: list[str] = []

    def fail(self: Path, to: Path) -> Path:
        if self.name == name and not failed:
            failed.append(name)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self))
        return rename(self, to)

    monkeypatch.setattr(Path, "rename", fail)
    with pytest.raises((RunError, OSError), match="No space left on device"):
        replace(tmp_path, "a", "last", "page")
    assert failed
    assert content(tmp_path) == {"old": "1", "page": "2"}


def test_content_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "file").write_text("1")
    replace(tmp_path, "page")
    assert content(tmp_path) == {"page": "new"}
    assert os.listdir(tmp_path) == ["page"]


def test_what_came_meanwhile_is_not_overwritten(tmp_path: Path) -> None:
    def write() -> None:
        with whole_folder(tmp_path / "out", "last") as folder:
            (folder / "last").write_text("mine")
            (tmp_path / "out").mkdir()
            (tmp_path / "out" / "theirs").write_text("theirs")

    with pytest.raises(UserError, match=r"holds other files \(theirs\)"):
        write()
    assert content(tmp_path) == {"out/theirs": "theirs"}


def test_outputs_that_cannot_be_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "loop").symlink_to("loop")
    for name, part in {
        "file/x": "file is no folder",
        "loop": "is a link to nothing",
        "loop/x": "Too many levels of symbolic links",
        "x" * 256: "File name too long",
        "a\0b": "null",
    }.items():
        with pytest.raises(UserError, match=part):
            require_writable(f"{tmp_path}/{name}")
    with pytest.raises(UserError, match="`output` is empty: name a folder"):
        require_free("")
    with pytest.raises(UserError, match="is a file"):
        require_free(tmp_path / "file")
    assert require_writable("~nobody-of-this-name/x") == Path("~nobody-of-this-name/x")
    monkeypatch.setattr(Path, "mkdir", lambda _: (_ for _ in ()).throw(OSError(errno.EROFS, "Read-only")))
    with pytest.raises(UserError, match=f"output {tmp_path / 'out'} cannot be made: Read-only"):
        require_free(tmp_path / "out")


def test_a_file_that_cannot_be_written_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_text(tmp_path / "file", "before")
    monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError(errno.ENOSPC, "full")))
    with pytest.raises(RunError, match=f"{tmp_path / 'file'} cannot be written to: full"):
        write_text(tmp_path / "file", "after")
    assert content(tmp_path) == {"file": "before"}


def test_half_characters_are_written_as_json_has_them(tmp_path: Path) -> None:
    write_json(tmp_path / "file", {"text": "\ud83d"})
    assert '"\\ud83d"' in (tmp_path / "file").read_text()
