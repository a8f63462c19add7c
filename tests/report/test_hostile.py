"""Whatever stands in records, logs and failures ends in a report, or in one line; names send nothing to anybody."""

import json
import random
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from tests.report.records import make_record
from ttlora.cli.main import main
from ttlora.cli.search_report import search_report_as_json
from ttlora.errors import UserError
from ttlora.report import report as module
from ttlora.report.search import report as search_module
from ttlora.report.search.report import write_search_report

ODD_VALUES: list[Any] = [
    *(None, True, 0, 1, -5, 10**400, 2**63, 1e308, -1e308, 1e-320, float("nan"), float("inf")),
    *("", "x", "\x1b[2J", "<script>alert(1)</script>", "[red]x", "\ud83d", "a" * 5000, "|`*_", "=cmd()", "../../x"),
    *([], [1], [None], {}, {"a": 1}, {"a": float("inf")}, {"\x1b": 1}, [[[]]]),
]


def odd_record(place: Path, chance: random.Random) -> str:
    """The text of a record in which something may be wrong."""
    names = {"method": chance.choice(("tt-lora", "lora", "head")), "task": chance.choice(("glue/sst2", "file"))}
    record = asdict(make_record(place, chance.random(), seed=chance.randint(0, 2), r=chance.randint(1, 9), **names))
    for _ in range(chance.randint(0, 2)):
        target = chance.choice((record, record["metrics"], record["recipe"], record["versions"]))
        if isinstance(target, dict):
            new = ("epochs", "patience", "validation", "settings", "shape", "learning_rate", "<b>", "\x1b")
            target[chance.choice((*target, *new))] = chance.choice(ODD_VALUES)
    if chance.random() < 0.2:
        metric = chance.choice(("perplexity", "<i>m", "\x1b[2J"))
        record |= {"primary_metric": metric, "metrics": {metric: chance.choice((0.5, 10**80, 1e308, 0, -3))}}
    text = json.dumps(record)
    return text[: chance.randrange(len(text))] if chance.random() < 0.05 else text


def odd_folder(folder: Path, seed: int) -> None:
    """A few runs, their logs, and a failure."""
    chance = random.Random(seed)
    for number in range(chance.randint(1, 5)):
        place = folder / f"run{number}"
        place.mkdir(parents=True)
        (place / "result.json").write_text(odd_record(place, chance))
        entries = [{"epoch": epoch, "validation_loss": chance.random()} for epoch in range(1, chance.randint(1, 4))]
        for entry in entries[:1]:
            entry[chance.choice(("epoch", "validation_loss", "accuracy"))] = chance.choice(ODD_VALUES)
        (place / "log.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    failure = dict.fromkeys(("method", "model", "task", "seed", "error"), "x")
    failure[chance.choice(list(failure))] = chance.choice(ODD_VALUES)
    (folder / "failed").mkdir()
    (folder / "failed" / "failed.json").write_text(json.dumps(failure) if chance.random() < 0.9 else "[" * 100_000)


def refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON")


@pytest.mark.parametrize("seed", range(40))
def test_odd_records(seed, tmp_path, capsys, monkeypatch):
    if seed > 3:  # to draw takes a second
        for one in (module, search_module):
            monkeypatch.setattr(one, "draw_figures", lambda *_: [])
    odd_folder(tmp_path / "runs", seed)
    for flags in ((), ("--json",)):
        output = tmp_path / f"report{len(flags)}"
        status = main(["report", str(tmp_path / "runs"), "--output", str(output), *flags])
        out, err = capsys.readouterr()
        assert "unexpected" not in err
        assert all(line.isprintable() for line in (out + err).splitlines())
        if status == 2:
            assert err.startswith("ttlora: error: ")
            assert not output.exists()
            continue
        assert status == 0
        if flags:
            json.loads(out, parse_constant=refuse_constant)
        for name in ("report.html", "tables.md", "tables.csv"):
            text = (output / name).read_text()
            assert "<script>alert" not in text or name == "tables.csv"
            assert "\x1b" not in text
    try:
        written = write_search_report([tmp_path / "runs"], tmp_path / "search")
        json.dumps(search_report_as_json(written), allow_nan=False)
    except UserError:
        pass


def test_a_thousand_records(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(module, "draw_figures", lambda *_: [])
    for number in range(1000):
        place = tmp_path / "runs" / str(number)
        place.mkdir(parents=True)
        make_record(place, 0.5, seed=number % 500, r=1 + number % 4).write(place / "result.json")
    assert main(["report", str(tmp_path / "runs"), "--output", str(tmp_path / "report"), "--json"]) == 0
    captured = capsys.readouterr()
    assert len(json.loads(captured.out)["models"][0]["methods"]) == 4


def test_a_report_of_the_current_folder_is_replaced(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(module, "draw_figures", lambda *_: [])
    place = tmp_path / "runs"
    place.mkdir()
    make_record(place, 0.5).write(place / "result.json")
    (tmp_path / "report").mkdir()
    monkeypatch.chdir(tmp_path / "report")
    for _ in range(2):
        assert main(["report", "../runs", "--output", "."]) == 0
    assert sorted(path.name for path in Path.cwd().iterdir()) == ["figures", "report.html", "tables.csv", "tables.md"]
