import json
import os

import pytest

from tests.report.records import write_failure, write_run
from ttlora.errors import UserError, printable
from ttlora.report.runs import find_runs
from ttlora.report.settings import without_repeats


def test_folders_are_searched_and_files_are_read(tmp_path):
    deep = write_run(tmp_path / "a" / "b", "deep", log=[{"epoch": 1.0, "validation_accuracy": 0.5, "note": "x"}])
    single = write_run(tmp_path, "single")
    found = find_runs([tmp_path / "a", single / "result.json"])
    assert [run.path.parent for run in found.runs] == [deep, single]
    assert found.runs[0].log == ({"epoch": 1.0, "validation_accuracy": 0.5},)
    assert found.runs[1].log == ()
    assert not found.failures
    assert not found.damaged


def test_a_record_that_is_named_twice_counts_once(tmp_path):
    place = write_run(tmp_path, "run")
    assert len(find_runs([tmp_path, place, place / "result.json"]).runs) == 1


def test_damaged_records_are_named_and_skipped(tmp_path):
    write_run(tmp_path, "good")
    for name, text in (("short", '{"schema": 1'), ("deep", "[" * 100_000), ("other", '{"schema": 9}')):
        (tmp_path / name).mkdir()
        (tmp_path / name / "result.json").write_text(text)
    found = find_runs([tmp_path])
    assert len(found.runs) == 1
    assert sorted(line.split("/result.json")[0].rpartition("/")[2] for line in found.damaged) == [
        "deep",
        "other",
        "short",
    ]


@pytest.mark.parametrize("text", ["{", "[1]", '{"loss": 0.5}', '{"epoch": NaN}'])
def test_a_damaged_log_costs_the_curve_alone(text, tmp_path):
    place = write_run(tmp_path, "run")
    (place / "log.jsonl").write_text(text)
    found = find_runs([tmp_path])
    assert found.runs[0].log == ()
    assert "log.jsonl is no log of a run" in found.damaged[0]


def test_failures_are_read_unless_the_run_has_finished_since(tmp_path):
    write_run(tmp_path, "mended")
    write_failure(tmp_path, "failed", error="out of\nmemory \x1b[31m", label="BOFT r=8")
    (tmp_path / "mended" / "failed.json").write_text(json.dumps({"error": "was"}))
    found = find_runs([tmp_path])
    assert [(one.method, one.task, one.seed, one.error) for one in found.failures] == [
        ("BOFT r=8", "glue/rte", "1", "out of memory [31m")
    ]


def test_nothing_there(tmp_path):
    with pytest.raises(UserError, match="nowhere is not there"):
        find_runs([tmp_path / "nowhere"])
    with pytest.raises(UserError, match=r"there is no result\.json in"):
        find_runs([tmp_path])
    write_failure(tmp_path, "failed")
    with pytest.raises(UserError, match=r"all 1 runs in .* failed, the first \(boft, glue/rte\) with: out of memory"):
        find_runs([tmp_path])
    (tmp_path / "recipe.yaml").write_text("model: bert")
    with pytest.raises(UserError, match=r"^\S+recipe\.yaml is no result record: line 1 is no JSON$"):
        find_runs([tmp_path / "recipe.yaml"])
    (tmp_path / "result.json").write_text("[]")
    with pytest.raises(UserError, match=r"no result record in .* can be read: .* it is \[\]"):
        find_runs([tmp_path])


def test_of_two_runs_of_one_recipe_and_seed_the_newer_counts(tmp_path):
    for name, seconds in (("old", 1_000), ("new", 2_000), ("middle", 1_500)):
        os.utime(write_run(tmp_path, name, threads=seconds) / "result.json", (seconds, seconds))
    write_run(tmp_path, "other-seed", seed=1)
    write_run(tmp_path, "other-rank", r=7)
    runs, notes = without_repeats(find_runs([tmp_path]).runs)
    assert sorted(run.path.parent.name for run in runs) == ["new", "other-rank", "other-seed"]
    assert ["old" in notes[0], "middle" in notes[1]] == [True, True]
    assert "new" in notes[1]


def test_printable():
    assert printable("a\x1b[0m\n\tb\u202e c") == "a [0m b c"
    assert printable("x" * 20, 10) == "x" * 9 + "…"
