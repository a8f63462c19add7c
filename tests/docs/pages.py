"""What the tests of the pages read: the pages, and the commands that they show."""

import re
import shlex
from pathlib import Path

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
SITE_PAGES = sorted(path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md"))
PAGES = [
    *(ROOT / name for name in ("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md")),
    *(DOCS / name for name in SITE_PAGES),
]
BLOCK = re.compile(r"^```[^\n]*\n(.*?)^```", re.MULTILINE | re.DOTALL)
SPAN = re.compile(r"(?<!`)`([^`\n]+)`(?!`)")


def prose(page: Path) -> str:
    """The text of a page without its blocks of code."""
    return BLOCK.sub("", page.read_text("utf-8"))


def anchors(page: Path) -> set[str]:
    """What can be linked to on a page: its headings, as GitHub and the site call them."""
    headings = re.findall(r"^#+ (.+)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


def commands(page: Path) -> list[list[str]]:
    """The calls of `ttlora` on a page, in blocks and in the text, each as its words."""
    text = page.read_text("utf-8")
    lines = [line for block in BLOCK.findall(text) for line in block.replace("\\\n", " ").splitlines()]
    lines += SPAN.findall(prose(page))
    calls = [line.removeprefix("$ ").strip() for line in lines]
    return [shlex.split(call, comments=True)[1:] for call in calls if re.match(r"ttlora [a-z]+( |$)", call)]
