"""The site: every page is in its menu, and it builds without a warning into pages that ask no other host."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

import ttlora
from tests.docs.pages import ROOT, SITE_PAGES
from ttlora.cli.main import COMMANDS


class Loader(yaml.SafeLoader):
    """YAML with tags of MkDocs."""


Loader.add_multi_constructor("!", lambda loader, suffix, node: None)


def leaves(menu: Any) -> Iterator[str]:
    for entry in menu:
        for target in entry.values():
            if isinstance(target, str):
                yield target
            else:
                yield from leaves(target)


def test_the_menu_lists_every_page() -> None:
    config = yaml.load((ROOT / "mkdocs.yml").read_text("utf-8"), Loader)
    assert sorted(leaves(config["nav"])) == SITE_PAGES


def test_it_builds_strictly(tmp_path: Path) -> None:
    built = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path)],
        cwd=ROOT,
        env=os.environ | {"NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert built.returncode == 0, built.stdout + built.stderr
    pages = {path.relative_to(tmp_path).as_posix(): path.read_text("utf-8") for path in tmp_path.rglob("*.html")}
    for name, page in pages.items():
        loaded = re.findall(r'<(?:script|img|iframe)[^>]+src="([^"]+)"|<link[^>]+href="([^"]+)"', page)
        assert not [one for found in loaded for one in found if re.match(r"(\w+:)?//", one)], name
        assert "{{ " not in page, name
        assert not re.search(r"\\[(\[]", page), f"{name} has a formula that is none"
    for style in tmp_path.rglob("*.css"):
        assert not re.search(r"url\([\"']?(\w+:)?//|@import", style.read_text("utf-8")), style
    python = pages["reference/python/index.html"]
    assert all(f'id="ttlora.{name}"' in python for name in ttlora.__all__ if not name.startswith("_"))
    shown = pages["reference/command-line/index.html"]
    assert all(f"usage: ttlora {name} " in shown for name in COMMANDS)
