import io
import json
import sys

import pytest

from tests.conftest import write_jsonl
from ttlora.cli.main import main
from ttlora.finetune.finished import FinishedRun


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
        ({"sentence": "great", "probabilities": 1}, "line 1: column 'probabilities' is there already: rename it"),
        (
            {"sentence": "great", "who": "\ud83d"},
            "line 1: column 'who' holds '\\ud83d', which no line of JSON in UTF-8 can: mend it, or take the column out",
        ),
        (
            {"sentence": "great", "who": [float("inf")]},
            "line 1: column 'who' holds [inf], which no line of JSON in UTF-8 can: mend it, or take the column out",
        ),
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


def test_what_is_missing_in_a_row_is_null(finished, tmp_path, ttlora):
    path = write_jsonl(tmp_path / "rows.jsonl", [{"sentence": "great", "who": float("nan")}])
    outcome = ttlora("predict", finished, "--input", path)
    assert '"who": null' in outcome.out


def test_labels_are_predicted_as_they_were_written(bert, tmp_path, ttlora):
    (tmp_path / "rows.csv").write_text("text,label\n" + "great,007\nawful,010\n" * 4)
    files = ("--train", tmp_path / "rows.csv", "--validation", tmp_path / "rows.csv")
    flags = ("--model", bert, "--task", "file", *files, "--epochs", 1, "--threads", 1, "--output", tmp_path / "out")
    assert ttlora("train", *flags).status == 0
    outcome = ttlora("predict", tmp_path / "out", "--input", tmp_path / "rows.csv")
    lines = [json.loads(line) for line in outcome.out.splitlines()]
    assert {line["prediction"] for line in lines} <= {"007", "010"}
    assert all(list(line["probabilities"]) == ["007", "010"] for line in lines)
    assert ttlora("evaluate", tmp_path / "out").status == 0


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("", "is a folder: name a file in it"),
        ("link", "is a link: name a file that is not there yet"),
        ("x" * 300, "the name is too long for a file"),
        ("/dev/null", "is no ordinary file: without --output the rows go to stdout"),
    ],
)
def test_output_that_is_no_place_for_a_file(name, message, finished, rows, tmp_path, ttlora):
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    outcome = ttlora("predict", finished, "--input", rows, "--output", tmp_path / name)
    assert (outcome.status, outcome.out) == (2, "")
    assert message in outcome.err
    assert not (tmp_path / "nowhere").exists()


def test_output_that_is_made_in_the_meantime_stays(finished, rows, tmp_path, ttlora, monkeypatch):
    target = tmp_path / "predictions.jsonl"
    load = FinishedRun.load

    def slowly(*arguments):
        target.write_text("somebody's")
        return load(*arguments)

    monkeypatch.setattr(FinishedRun, "load", slowly)
    outcome = ttlora("predict", finished, "--input", rows, "--output", target)
    assert outcome.status == 2
    assert "is there already" in outcome.err
    assert target.read_text() == "somebody's"


@pytest.mark.parametrize("flags", [(), ("--json",)])
def test_signs_that_stdout_cannot_show(flags, finished, tmp_path, monkeypatch):
    file = write_jsonl(tmp_path / "rows.jsonl", [{"sentence": "the film was déjà vu 😀"}])
    stream = io.TextIOWrapper(io.BytesIO(), "ascii")
    monkeypatch.setattr(sys, "stdout", stream)
    assert main(["predict", str(finished), "--input", str(file), *flags]) == 0
    content = json.loads(stream.buffer.getvalue())
    (row,) = content["predictions"] if flags else [content]
    assert row["sentence"] == "the film was déjà vu 😀"
