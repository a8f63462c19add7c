"""The rows of the benchmark of classes that arrive in groups: reading a Debian index, and drawing."""

import pytest
from incremental import GROUPS, NAMES, SECTIONS, descriptions, draw

INDEX = """\
Package: chess
Source: chess-suite (1.2-3)
Description: a game of chess
 Section: fonts
 for two.
Section: games

Package: chess-data
Source: chess-suite
Description: boards and pieces
Section: games


Package: go
Description: A game of stones
Section: non-free/games

Package: go-again
Description: a game of STONES
Section: games

Package: libgo
Description: rules of stones
Section: libs

Package: mutt-old
Description: transitional package for mutt
Section: mail

Package: mutt
Description: reader: mail, in a terminal
Section: mail

Package: unnamed
Section: mail"""


def test_reads_one_description_of_a_source_and_none_twice():
    read = descriptions(INDEX.splitlines(keepends=True))
    assert list(read) == SECTIONS
    assert read["games"] == ["a game of chess", "A game of stones"]
    assert read["mail"] == ["reader: mail, in a terminal"]
    assert not any(texts for section, texts in read.items() if section not in ("games", "mail"))


def test_draws_as_many_rows_of_each_section():
    texts = {section: [f"{section} {number}" for number in range(9)] for section in SECTIONS}
    drawn = draw(texts, 5, 3)
    assert len(SECTIONS) == len(set(SECTIONS)) == 12
    for name, group in zip(NAMES, GROUPS, strict=True):
        for split, count in (("train", 5), ("validation", 3)):
            labels = [row["label"] for row in drawn[name, split]]
            assert labels == [section for section in group for _ in range(count)]
            assert all(row["text"].startswith(row["label"]) for row in drawn[name, split])
    every = [row["text"] for rows in drawn.values() for row in rows]
    assert len(every) == len(set(every)) == 12 * 8
    assert drawn == draw(texts, 5, 3)
    with pytest.raises(SystemExit, match="the index has 9 descriptions of section admin: 10 needed"):
        draw(texts, 6, 4)
