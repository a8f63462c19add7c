"""What the site adds to its pages while it is built: parts of the project's files, the commands' help, and formulas.

A page takes in another file with a line of its own:

    {{ README.md }}                          the whole file, without its title
    {{ README.md: Switch from LoRA }}        the section below the heading that begins with these words
    {{ ttlora --help }}                      the help of all commands, as they print it
    {{ import ttlora }}                      what the package gives, by kind

So nothing stands in two places. Links of the text that is taken in are turned to where the site has their target.
"""

import ast
import os
import re
import subprocess
import sys
from pathlib import Path
from posixpath import normpath, relpath
from typing import Any

from latex2mathml.converter import convert

ROOT = Path(__file__).parent.parent
TAKEN_IN = re.compile(r"^\{\{ ([\w.]+\.md)(?:: (.+?))? \}\}$", re.MULTILINE)
LINK = re.compile(r"(?<=\]\()(?!\w+:|#)([^)#\s]+)")
FORMULA = re.compile(r'<(span|div) class="arithmatex">\\[(\[](.*?)\\[)\]]</\1>', re.DOTALL)
# Files of the project that are pages of the site.
PAGES = {
    "README.md": "index.md",
    "CHANGELOG.md": "project/changelog.md",
    "CONTRIBUTING.md": "project/contributing.md",
    "SECURITY.md": "project/security.md",
}
HELP = """
import sys
sys.argv = ["ttlora"]  # as when it is typed
from ttlora.cli.main import COMMANDS, main
for name in COMMANDS:
    print(end=f"\\0{name}\\n")
    try:
        main([name, "--help"])
    except SystemExit:
        pass
"""


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Take in what the page names."""
    here = page.file.src_uri
    markdown = TAKEN_IN.sub(lambda match: taken_in(match[1], match[2], here), markdown)
    if "{{ ttlora --help }}" in markdown:
        markdown = markdown.replace("{{ ttlora --help }}", commands())
    if "{{ import ttlora }}" in markdown:
        markdown = markdown.replace("{{ import ttlora }}", public_names())
    return markdown


def on_page_content(html: str, **_: Any) -> str:
    """Write formulas as MathML, which browsers draw by themselves."""

    def mathml(match: re.Match[str]) -> str:
        latex = match[2].replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&").strip()
        return convert(latex, display="block" if match[1] == "div" else "inline")

    return FORMULA.sub(mathml, html)


def taken_in(name: str, heading: str | None, here: str) -> str:
    """The text of a project's file, or of one of its sections, with links as they have to be on the page ``here``.

    Raises:
        ValueError: The file has no such section.
    """
    text = (ROOT / name).read_text("utf-8")
    _, _, text = text.partition("\n") if text.startswith("# ") else ("", "", text)
    if heading is not None:
        section = re.search(rf"^## {re.escape(heading)}[^\n]*\n(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL)
        if section is None:
            raise ValueError(f"{here} takes in the section {heading!r} of {name}, which has none of that name")
        text = section[1]

    def turned(match: re.Match[str]) -> str:
        target = normpath(match[1])
        if target in PAGES or target.startswith("docs/"):
            return relpath(PAGES.get(target, target.removeprefix("docs/")), os.path.dirname(here) or ".")
        return f"FILE:{target}"

    text = LINK.sub(turned, text)
    # a file that the site does not have is named, not linked
    text = re.sub(r"\[([^\]]+)\]\(FILE:[^)]*\)", r"\1", text)
    return text.strip()


def commands() -> str:
    """The help of every command, as it prints it."""
    # a process of its own: what the commands import and report is none of the site's
    printed = subprocess.run(
        [sys.executable, "-c", HELP], env=os.environ | {"COLUMNS": "90"}, capture_output=True, text=True, check=False
    )
    if printed.returncode:
        raise ValueError(f"the commands' help: {printed.stderr}")
    parts = printed.stdout.split("\0")[1:]
    return "\n\n".join(
        f"## ttlora {name}\n\n```text\n{text.strip()}\n```" for name, text in (part.split("\n", 1) for part in parts)
    )


def public_names() -> str:
    """Directives of mkdocstrings for all that `__all__` names, read from the source: importing it takes seconds."""
    tree = ast.parse((ROOT / "src/ttlora/__init__.py").read_text("utf-8"))
    lists = [
        node.value for node in tree.body if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__"
    ]
    names = [name for name in ast.literal_eval(lists[0]) if not name.startswith("_")]
    kinds = {
        "Functions": [name for name in names if name.islower()],
        "Recipes, configs and pools": [name for name in names if not name.islower() and not name.endswith("Model")],
        "Models": [name for name in names if name.endswith("Model")],
    }
    return "\n\n".join(
        "\n\n".join([f"## {kind}", *(f"::: ttlora.{name}" for name in sorted(members, key=not_first))])
        for kind, members in kinds.items()
        if members
    )


def not_first(name: str) -> bool:
    """TT-LoRA comes before what it is compared with."""
    return not name.startswith("TTLora")
