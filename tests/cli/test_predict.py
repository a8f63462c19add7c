import json

import pytest
from conftest import write_jsonl


@pytest.fixture
def rows(tmp_path):
    return write_jsonl(tmp_path / "rows.jsonl", [{"sentence": "the film was great", "who": "é"}, {"sentence": "dull"}])


def test_one_line_a_row_in_their_order(finished, rows, ttlora):
    outcome = ttlora("predict", finished, "--input", rows)
    assert (outcome.status, outcome.err) == (0, "")
    lines = [json.loads(line) for line in outcome.out.splitlines()]
    assert [line["sentence"] for line in lines] == ["the film was great", "dull"]
    assert lines[0]["who"] == "é"
    for line in lines:
        assert line["prediction"] == max(line["probabilities"], key=line["probabilities"].get) or line[
            "prediction"
        ] in (0, 1)
        assert int(max(line["probabilities"], key=line["probabilities"].get)) == line["prediction"]
        assert sum(line["probabilities"].values()) == pytest.approx(1, abs=1e-5)


def test_batching_changes_no_prediction(finished, data, tmp_path, ttlora):
    outcome = ttlora("predict", finished, "--input", data / "sst2" / "validation.jsonl")
    lines = [json.loads(line) for line in outcome.out.splitlines()]
    alone = write_jsonl(tmp_path / "alone.jsonl", [{"sentence": lines[17]["sentence"]}])
    (line,) = [json.loads(line) for line in ttlora("predict", finished, "--input", alone).out.splitlines()]
    assert line["probabilities"] == pytest.approx(lines[17]["probabilities"], abs=1e-5)


def test_output_file_is_written_and_never_overwritten(finished, rows, tmp_path, ttlora):
    target = tmp_path / "predictions.jsonl"
    outcome = ttlora("predict", finished, "--input", rows, "--output", target)
    assert outcome.out == f"2 rows with predictions: {target}\n"
    assert target.read_text() == ttlora("predict", finished, "--input", rows).out
    before = target.read_bytes()
    outcome = ttlora("predict", finished, "--input", rows, "--output", target)
    assert outcome.status == 2
    assert outcome.err == f"ttlora: error: --output {target} is there already: name another file, or remove it\n"
    assert target.read_bytes() == before


def test_json_is_one_object(finished, rows, tmp_path, ttlora):
    result = json.loads(ttlora("predict", finished, "--input", rows, "--json").out)
    assert (result["rows"], len(result["predictions"])) == (2, 2)
    target = tmp_path / "predictions.jsonl"
    result = json.loads(ttlora("predict", finished, "--input", rows, "--output", target, "--json").out)
    assert result == {"rows": 2, "output": str(target)}


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"text": "great"}, "line 1: there is no column 'sentence', only text"),
        ({"sentence": None}, "line 1: column 'sentence' holds no text but nothing"),
        ({"sentence": "great", "prediction": 1}, "line 1: column 'prediction' is there already: rename it"),
    ],
)
def test_wrong_rows(row, message, finished, tmp_path, ttlora):
    path = write_jsonl(tmp_path / "rows.jsonl", [row])
    outcome = ttlora("predict", finished, "--input", path)
    assert (outcome.status, outcome.out, outcome.err) == (2, "", f"ttlora: error: {path}, {message}\n")


def test_output_in_a_folder_that_is_not_there(finished, rows, tmp_path, ttlora):
    outcome = ttlora("predict", finished, "--input", rows, "--output", tmp_path / "no" / "p.jsonl")
    assert outcome.status == 2
    assert f"there is no folder {tmp_path / 'no'}" in outcome.err
