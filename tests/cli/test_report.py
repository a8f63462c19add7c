"""The command `ttlora report`."""

import json

import pytest

from tests.report.records import write_failure, write_run
from ttlora.cli.report import report
from ttlora.errors import UserError
from ttlora.report import report as module


@pytest.fixture
def runs(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "draw_figures", lambda *_: [])
    for seed, (ours, theirs) in enumerate([(0.80, 0.90), (0.84, 0.92)]):
        write_run(tmp_path / "runs", f"tt{seed}", ours, seed=seed, r=5)
        write_run(tmp_path / "runs", f"lora{seed}", theirs, seed=seed, method="lora", r=8)
    return tmp_path / "runs"


def test_json(runs, tmp_path, capsys):
    write_failure(runs, "failed")
    report([str(runs)], output=str(tmp_path / "report"), json=True)
    content = json.loads(capsys.readouterr().out)
    (model,) = content["models"]
    lora, ours = model["methods"]
    assert (lora["label"], ours["label"]) == ("LoRA r=8", "TT-LoRA r=5")
    assert ours["adapter_parameters"] == 16_320
    assert ours["tasks"][0]["mean"] == pytest.approx(0.82)
    assert ours["average"] == {
        "mean": pytest.approx(0.82),
        "standard_deviation": pytest.approx(0.02828, abs=1e-4),
        "seeds": 2,
    }
    assert lora["times_parameters_of"] == {"TT-LoRA r=5": pytest.approx(4.5176, abs=1e-3)}
    assert content["failures"][0]["error"] == "out of memory"
    assert str(tmp_path / "report" / "report.html") in content["files"]


def test_tables_in_the_terminal(runs, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    for index, task in enumerate(("mrpc", "cola", "qnli", "rte", "stsb", "mnli", "qqp")):
        write_run(runs, f"more{index}", task=f"glue/{task}", method="lora", r=8)
    write_failure(runs, "failed", error="out of [bold]memory")
    report([str(runs), str(runs / "tt0" / "result.json")], output=str(tmp_path / "report"))
    text = capsys.readouterr().out
    assert max(map(len, text.splitlines())) <= 80
    assert "number 2 of 2" in text
    table = next(line for line in text.splitlines() if line.startswith("TT-LoRA r=5 ") and "16,320" in line)
    assert table.split()[2] == "16,320"
    assert "82.00" in text
    assert "±2.83" in text
    assert "out of [bold]memory" in text
    assert text.count("LoRA r=8 ") >= 3
    assert str(tmp_path / "report" / "report.html") in text.replace("\n", "")


def test_what_is_left_out_goes_to_stderr(runs, tmp_path, capsys):
    (runs / "tt0" / "result.json").write_text("{")
    report([str(runs)], output=str(tmp_path / "report"), json=True)
    output = capsys.readouterr()
    assert output.err.startswith("left out: ")
    assert "tt0" in output.err
    json.loads(output.out)


def test_wrong_use(runs, tmp_path):
    with pytest.raises(UserError, match="is not there"):
        report([str(tmp_path / "nowhere")], output=str(tmp_path / "report"))
    with pytest.raises(UserError, match="holds other files"):
        report([str(runs)], output=str(runs))
    assert not (tmp_path / "report").exists()


def test_names_send_nothing_to_the_terminal(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(module, "draw_figures", lambda *_: [])
    names = dict.fromkeys(("method", "model", "task", "primary_metric"), "\x1b[31mred")
    write_run(tmp_path / "runs", "a", **names, r="\x1b[31m", settings={"\x1b": 1})
    write_failure(tmp_path / "runs", "b", **dict.fromkeys(("method", "model", "task", "error"), "\x1b[31mred"))
    report([str(tmp_path / "runs")], output=str(tmp_path / "report"))
    assert "\x1b" not in capsys.readouterr().out
