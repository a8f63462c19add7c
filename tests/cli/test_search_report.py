"""What `ttlora search` prints of its report."""

import json

import pytest

from tests.report.records import write_failure
from tests.report.search.made_up import write_search
from ttlora.cli.search_report import print_search_report, search_report_as_json
from ttlora.report.search import report as module
from ttlora.report.search.report import write_search_report


@pytest.fixture
def written(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "draw_figures", lambda *_: [])
    write_failure(tmp_path / "trials", "9999", error="out of [bold]memory \x1b[31m")
    write_search(tmp_path / "trials", 12)
    return write_search_report([tmp_path / "trials"], tmp_path / "report", 0.2)


def test_in_the_terminal(written, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    print_search_report(written)
    text = capsys.readouterr().out
    assert max(map(len, text.splitlines())) <= 80
    assert " has the lowest validation loss, " in text
    assert "The smallest that reaches the target of 20.00 is that of trial " in text.replace("\n", " ")
    for trial in written.front:
        assert f"\n{trial.name} " in text
    assert "9999: out of [bold]memory [31m" in text
    assert "\x1b" not in text
    assert str(tmp_path / "report" / "report.html") in text.replace("\n", "")


def test_as_json(written):
    content = json.loads(json.dumps(search_report_as_json(written), allow_nan=False))
    losses = [trial["validation_loss"] for trial in content["trials"]]
    assert content["best"]["validation_loss"] == min(losses)
    assert content["highest_score"]["score"] == max(trial["score"] for trial in content["trials"])
    assert content["smallest_reaching_target"]["trial"] == content["pareto_front"][0]["trial"]
    assert set(content["best"]["settings"]) == {"shape", "r", "alpha", "learning_rate"}
    assert content["best"]["adapter_bytes_16bit"] == 2 * content["best"]["adapter_parameters"]
    assert sum(trial["stopped_early"] for trial in content["trials"]) == 4
    assert content["failures"][0]["error"].startswith("out of")
