"""ttlora route, as it is typed, and the commands that take its folder in the place of a run."""

import json

import pytest

from tests.cli.test_wrong_use import assert_one_line
from tests.conftest import write_jsonl
from tests.finetune.test_route import fit


@pytest.fixture(scope="module")
def runs(bert, tmp_path_factory):
    """Runs of two tasks; not to be changed."""
    folder = tmp_path_factory.mktemp("runs")
    return [fit(bert, folder, name, folder / name) for name in ("mood", "pair")]


@pytest.fixture
def router(runs, tmp_path, ttlora):
    assert ttlora("route", *runs, "--output", tmp_path / "router").status == 0
    return tmp_path / "router"


def test_says_how_well_each_expert_is_found(runs, tmp_path, ttlora):
    outcome = ttlora("route", *runs, "--output", tmp_path / "router", "--rows", 16, "--seed", 3)
    assert (outcome.status, outcome.err) == (0, "")
    title, *lines, last = outcome.out.splitlines()
    assert title.split() == ["expert", "task", "rows", "found", "by", "text"]
    found = json.loads((tmp_path / "router" / "router.json").read_text())["found"]
    for name, line in zip(("mood", "pair"), lines, strict=True):
        assert line.split() == [name, "file", "16", "100.0", "%", f"{100 * found[name]['by_text']:.1f}", "%"]
    assert last.startswith(f"{tmp_path / 'router'}: a router of 256 parameters and 2 experts, ")


def test_json_is_one_object(runs, tmp_path, ttlora):
    result = json.loads(ttlora("route", *runs, "--output", tmp_path / "router", "--json").out)
    assert result["parameters"] == 256
    files = [tmp_path / "router" / "router.safetensors", *(tmp_path / "router").rglob("adapter_model.safetensors")]
    assert len(files) == 3
    assert result["bytes"] == sum(file.stat().st_size for file in files)
    found = json.loads((tmp_path / "router" / "router.json").read_text())["found"]
    assert result["experts"] == [{"name": name, "task": "file", **found[name]} for name in ("mood", "pair")]
    assert found["pair"]["found"] == 1


def test_adding_an_expert_says_how_well_the_others_were_found(router, runs, bert, tmp_path, ttlora):
    more = fit(bert, runs[0].parent, "choice", tmp_path / "choice")
    outcome = ttlora("route", router, more, "--output", tmp_path / "more")
    title, mood, _, choice, _ = outcome.out.splitlines()
    assert title.rstrip().endswith("before")
    assert len(mood.split()) == len(choice.split()) + 2
    result = json.loads(ttlora("route", router, more, "--output", tmp_path / "again", "--json").out)
    assert [expert.get("before", {}).get("found") for expert in result["experts"]] == [1.0, 1.0, None]


def test_predicts_rows_of_unknown_task(router, tmp_path, ttlora):
    rows = [{"sentence": "the film was great"}, {"first": "it bright people", "second": "it poor people", "id": 7}]
    outcome = ttlora("predict", router, "--input", write_jsonl(tmp_path / "rows.jsonl", rows))
    assert (outcome.status, outcome.err) == (0, "")
    mood, pair = map(json.loads, outcome.out.splitlines())
    assert (mood["expert"], list(mood["probabilities"])) == ("mood", ["0", "1"])
    assert (pair["expert"], list(pair["probabilities"]), pair["id"]) == ("pair", ["both", "none", "one"], 7)


def test_evaluates_all_experts(router, runs, ttlora):
    outcome = ttlora("evaluate", router)
    assert (outcome.status, outcome.err) == (0, "")
    title, *lines, last = outcome.out.splitlines()
    assert title.split()[-3:] == ["metric", "mixture", "told"]
    for run, line in zip(runs, (lines[0], lines[2]), strict=True):
        told = f"{json.loads((run / 'result.json').read_text())['metrics']['accuracy']:.4f}"
        assert line.split()[-3:] == ["accuracy", told, told]
    assert last.endswith(" ms a row")
    result = json.loads(ttlora("evaluate", router, "--json").out)
    assert [expert["metrics"] == pytest.approx(expert["told"]) for expert in result["experts"]] == [True, True]


def test_wrong_use(router, runs, tmp_path, ttlora):
    out = tmp_path / "out"
    assert_one_line(ttlora("route", "--output", out), "EXPERTS is missing: see ttlora route --help")
    assert_one_line(ttlora("route", runs[0], "--output", out), "EXPERTS: a router chooses among experts")
    assert_one_line(ttlora("route", *runs, runs[0], "--output", out), f"expert {runs[0]} is there twice")
    assert_one_line(ttlora("route", router, runs[0], "--output", out), "is there twice", "holds the same adapter")
    assert_one_line(ttlora("route", *runs, "--output", runs[0]), f"output folder {runs[0]} holds other files")
    assert_one_line(ttlora("route", *runs, "--output", out, "--rows", 0), "--rows is 0, and has to be at least 1")
    assert_one_line(ttlora("route", *runs, "--output", out, "--seed", -1), "--seed is -1, and has to be from 0")
    assert_one_line(ttlora("route", *runs, "--output", out, "--model", tmp_path), "holds no config.json")
    assert not out.exists()
