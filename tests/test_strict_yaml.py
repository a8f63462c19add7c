from pathlib import Path

import pytest

from ttlora.errors import UserError
from ttlora.strict_yaml import dump, parse, read_mapping


def test_numbers_are_read_as_people_write_them():
    assert parse("[1e-2, 1e3, -2.5E+1, 0, -7, 1_000, 0.5, 0x10]") == [0.01, 1000.0, -25.0, 0, -7, 1000, 0.5, 16]


@pytest.mark.parametrize(
    "text", ["1e3", "-1E-2", "1.e5", "007", "1:30", "no", "null", "2020-01-01", "=", "<<", "{a}", "#", "", "a\x85b"]
)
def test_text_that_looks_like_something_else_is_written_in_quotes(text):
    assert parse(dump({text: [text, 1e-5, 1e300, 7]})) == {text: [text, 1e-5, 1e300, 7]}


def test_anchors_and_merged_keys_mean_what_yaml_says():
    assert parse("a: &a {x: 1, y: 2}\nb: {<<: *a, y: 3}") == {"a": {"x": 1, "y": 2}, "b": {"x": 1, "y": 3}}


def test_byte_order_mark_is_no_part_of_a_key(tmp_path):
    (tmp_path / "f.yaml").write_text("model: é\n", "utf-8-sig")
    assert read_mapping(tmp_path / "f.yaml") == {"model": "é"}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a: 1\nb: 2\na: 3", "cannot be read as YAML: key 'a' is there twice, line 3"),
        ("a: {b: 1, b: 2}", "key 'b' is there twice, line 1"),
        ("a: [1", "line 1"),
        ("a: 010", "YAML takes 010 for 8: write that, or text in quotes, line 1"),
        ("a: 1:30", "YAML takes 1:30 for 90"),
        ("a: 1\n---\nb: 2", "line 2"),
        ("{[a]: 1}", "unhashable key, line 1"),
        ("a: &a [*a]", "it holds itself, or more than 131,072 values"),
        ("a0: &a0 [1, 1]\n" + "".join(f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]\n" for n in range(1, 40)), "more than"),
        ("[" * 5000, "nested too deeply"),
        ("a: !!python/object:os.system x", "could not determine a constructor"),
        ("a: !!timestamp x", "cannot be read as YAML"),
        ("a: !!float ''", "cannot be read as YAML"),
        ("a: 2020-13-45", "month must be in 1..12"),
        ("a: " + "9" * 5000, "cannot be read as YAML"),
        ("a: b".encode("utf-16"), "cannot be read as YAML: it is UTF-16: save it as UTF-8"),
        (b"a: b\nc: \xe9\n", "line 2 holds a byte of no character of UTF-8"),
        (b"a: \0", "cannot be read as YAML"),
        ("x" * (2**20 + 1), "it has 1,048,577 bytes, and a file of keys has 1,048,576 at most"),
        ("", "it holds no keys with values"),
        ("- a", "it holds no keys with values"),
        ("1: 2", "it holds no keys with values"),
    ],
)
def test_what_is_no_file_of_keys_is_one_line(content, message, tmp_path):
    path = tmp_path / "f.yaml"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError) as caught:
        read_mapping(path)
    assert message in str(caught.value)
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400


def test_what_is_no_file(tmp_path, monkeypatch):
    with pytest.raises(UserError, match="cannot be read as YAML: it is no file"):
        read_mapping(tmp_path)
    for name in ("none.yaml", "x" * 300, "a\0b"):
        with pytest.raises(UserError, match="is not there"):
            read_mapping(tmp_path / name)
    (tmp_path / "f.yaml").write_text("a: 1")

    def refuse(path: Path) -> bytes:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "read_bytes", refuse)
    with pytest.raises(UserError, match="cannot be read as YAML: Permission denied"):
        read_mapping(tmp_path / "f.yaml")
