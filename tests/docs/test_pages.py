"""Pages link to what is there, and show commands that there are."""

import re
from contextlib import redirect_stdout
from io import StringIO
from itertools import takewhile
from pathlib import Path

import pytest

from tests.docs.pages import DOCS, PAGES, ROOT, anchors, commands, prose
from ttlora.cli.main import COMMANDS, main

LINK = re.compile(r"\]\((?!\w+:)([^)#\s]*)(?:#([^)\s]+))?\)")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for target, anchor in LINK.findall(prose(page)):
        path = page.parent / target if target else page
        assert path.exists(), f"{page} links to {target}"
        if anchor:
            assert anchor in anchors(path), f"{page} links to {target}#{anchor}"


def test_pages_of_the_site_link_to_the_site() -> None:
    for page in DOCS.rglob("*.md"):
        for target, _ in LINK.findall(prose(page)):
            assert (page.parent / target).resolve().is_relative_to(DOCS), f"{page} links to {target}"


@pytest.fixture(scope="module")
def flags() -> dict[str, set[str]]:
    """The flags of each command, by its help."""
    found = {}
    for name in COMMANDS:
        with redirect_stdout(StringIO()) as printed:
            main([name, "--help"])
        found[name] = set(re.findall(r"(?<![\w-])--?[a-zA-Z][\w-]*", printed.getvalue()))
    return found


def test_pages_show_commands() -> None:
    assert sum(len(commands(page)) for page in PAGES) > 40


@pytest.mark.parametrize(
    "page", [page for page in PAGES if commands(page)], ids=lambda page: str(page.relative_to(ROOT))
)
def test_commands_that_are_shown_can_be_typed(page: Path, flags: dict[str, set[str]]) -> None:
    for name, *words in commands(page):
        if name == "COMMAND":
            continue
        assert name in COMMANDS, f"{page} shows ttlora {name}"
        for word in takewhile(lambda word: word != "--", words):
            if word.startswith("--"):
                assert word.partition("=")[0] in flags[name], f"{page} shows ttlora {name} {word}"
