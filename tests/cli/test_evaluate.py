import json
import shutil

import pytest


def test_measures_what_the_record_says(finished, ttlora):
    record = json.loads((finished / "result.json").read_text())
    result = json.loads(ttlora("evaluate", finished, "--json").out)
    assert result == {key: record[key] for key in ("method", "task", "metrics", "primary_metric", "validation_loss")}


def test_prints_a_line_a_metric(finished, ttlora):
    record = json.loads((finished / "result.json").read_text())
    outcome = ttlora("evaluate", finished)
    assert (
        outcome.out
        == f"accuracy {record['metrics']['accuracy']:.4f}\nvalidation loss {record['validation_loss']:.4f}\n"
    )
    assert (outcome.status, outcome.err) == (0, "")


def test_says_where_the_record_differs(finished, tmp_path, ttlora):
    shutil.copytree(finished, tmp_path / "out")
    result = tmp_path / "out" / "result.json"
    record = json.loads(result.read_text())
    record["metrics"]["accuracy"] = 0.125
    result.write_text(json.dumps(record))
    assert "(result.json: 0.125)" in ttlora("evaluate", tmp_path / "out").out


def test_model_that_has_moved(finished, bert, tmp_path, ttlora):
    shutil.copytree(finished, tmp_path / "out")
    recipe = tmp_path / "out" / "recipe.yaml"
    recipe.write_text(recipe.read_text().replace(str(bert), str(tmp_path / "gone")))
    outcome = ttlora("evaluate", tmp_path / "out")
    assert (outcome.status, outcome.out) == (2, "")
    gone = tmp_path / "gone"
    assert outcome.err == f"ttlora: error: model folder {gone} is not there: give its place as --model\n"
    assert ttlora("evaluate", tmp_path / "out", "--model", bert).out == ttlora("evaluate", finished).out


@pytest.mark.parametrize("command", ["evaluate", "predict"])
def test_folder_without_a_finished_run(command, finished, tmp_path, ttlora, data):
    extra = ["--input", data / "sst2" / "validation.jsonl"] if command == "predict" else []
    outcome = ttlora(command, tmp_path, *extra)
    assert (outcome.status, outcome.err) == (2, f"ttlora: error: {tmp_path} is no output folder of ttlora train\n")
    shutil.copytree(finished, tmp_path / "out")
    (tmp_path / "out" / "result.json").unlink()
    outcome = ttlora(command, tmp_path / "out", *extra)
    assert outcome.status == 2
    assert "holds an unfinished run: go on with ttlora train ... --resume" in outcome.err
