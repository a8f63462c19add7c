"""`ttlora search` as a user types it. Ray takes seconds to start: what can be asked of one search is asked of one."""

import json
import os
import signal
import subprocess
import time

import pytest
import yaml

from tests.conftest import command
from ttlora.cli.main import main
from ttlora.record import Record


def write_search(path, bert, rows, **keys):
    content = {
        "model": str(bert),
        "task": "glue/sst2",
        "data": str(rows),
        "epochs": 3,
        "batch_size": 8,
        "space": {"r": [1, 2, 5], "learning_rate": {"from": 1e-3, "to": 1e-1, "scale": "log"}},
        **keys,
    }
    path.write_text(yaml.safe_dump(content))
    return str(path)


def test_a_search_from_beginning_to_end(bert, data, tmp_path, capsys):
    # one of the rates makes a loss that is not finite
    space = {"r": [1, 2], "learning_rate": [1e-3, 1e-2, 1e30]}
    config = write_search(tmp_path / "s.yaml", bert, data, space=space, sampler="grid", trials=6)
    output = tmp_path / "out"
    assert main(["search", "--config", config, "--output", str(output), "--json"]) == 1
    told, said = capsys.readouterr()
    told = json.loads(told)
    states = [trial["state"] for trial in told["trials"]]
    assert len(states) == 6
    assert states.count("failed") == 2
    assert states.count("done") >= 2
    for trial in told["trials"]:
        folder = output / "runs" / trial["trial"]
        assert (folder / "result.json").exists() == (trial["state"] != "failed")
        assert "lower `learning_rate`" in trial["error"] if trial["state"] == "failed" else trial["error"] is None
        if trial["state"] == "stopped":
            assert Record.read(folder / "result.json").epochs < 3
        assert (folder / "adapter" / "adapter_config.json").exists() == (trial["state"] != "failed")
    assert not list(output.glob("runs/*/checkpoints"))
    assert not (output / "ray").exists()
    records = [Record.read(path) for path in output.glob("runs/*/result.json")]
    best = min(records, key=lambda record: record.validation_loss)
    assert yaml.safe_load((output / "best.yaml").read_text())["learning_rate"] == best.recipe["learning_rate"]
    assert (output / "report" / "report.html").exists()
    assert said.startswith(f"a search of 6 trials at most, 0 done: {output}\n")
    assert "Traceback" not in said
    assert "--retry-failed does them again" in said

    # the best recipe is one that train takes, and comes to the same
    again = tmp_path / "again"
    assert main(["train", "--config", str(output / "best.yaml"), "--output", str(again), "--threads", "1"]) == 0
    if best.epochs == 3:
        assert Record.read(again / "result.json").validation_loss == pytest.approx(best.validation_loss, rel=1e-4)

    # with nothing left to do, nothing is done
    capsys.readouterr()
    written = {path: path.stat().st_mtime_ns for path in (output / "runs").rglob("*") if path.is_file()}
    assert main(["search", "--config", config, "--output", str(output), "--json"]) == 1
    assert {path: path.stat().st_mtime_ns for path in (output / "runs").rglob("*") if path.is_file()} == written
    assert json.loads(capsys.readouterr().out)["trials"] == told["trials"]


@pytest.mark.parametrize(
    ("keys", "flags", "complaint"),
    [
        ({}, ["--config", "nowhere.yaml"], "--config nowhere.yaml is not there"),
        ({"spce": "auto"}, [], "did you mean space?"),
        ({"max_adapter_size": "10B"}, [], "the smallest adapter"),
        ({"space": {}}, [], "is empty"),
        ({"space": {"shape": [[3, 3]]}}, [], "[3, 3]"),
        ({"model": "/nowhere"}, [], "/nowhere"),
        ({"data": "/nowhere"}, [], "/nowhere"),
        ({}, ["--trials", "0"], "--trials is 0"),
        ({}, ["--resume"], "--resume is not an option any more: without it, the same command goes on"),
        ({}, ["--address", "127.0.0.1:9"], "the Ray cluster at 127.0.0.1:9 cannot be reached"),
    ],
)
def test_wrong_use_is_one_line_and_leaves_nothing(keys, flags, complaint, bert, data, tmp_path, capsys, monkeypatch):
    config = write_search(tmp_path / "s.yaml", bert, data, **keys)
    monkeypatch.chdir(tmp_path)
    arguments = flags if "--config" in flags else ["--config", config, *flags]
    assert main(["search", *arguments]) == 2
    told, said = capsys.readouterr()
    assert told == ""
    assert complaint in said.splitlines()[-1]
    assert "Traceback" not in said
    assert not (tmp_path / "s" / "runs" / "0001").exists()
    # what failed for a reason of its own is no search to be resumed
    if (tmp_path / "s").exists():
        assert main(["search", *arguments]) == 2
        assert complaint in capsys.readouterr().err.splitlines()[-1]


def test_a_folder_that_holds_something_is_refused(bert, data, tmp_path, capsys):
    config = write_search(tmp_path / "s.yaml", bert, data)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("mine")
    assert main(["search", "--config", config, "--output", str(tmp_path / "out")]) == 2
    assert "mine.txt" in capsys.readouterr().err
    (tmp_path / "out" / "mine.txt").rename(tmp_path / "out" / "plan.json")
    (tmp_path / "out" / "runs" / "0001").mkdir(parents=True)
    trial = {"name": "0001", "settings": {"r": 2}, "parameters": 5}
    for content in (
        "mine",
        "[" * 100_000,
        {"asked": 5, "trials": []},
        {"asked": {}, "trials": 5},
        {"asked": {}, "trials": [5]},
        {"asked": {}, "trials": [{**trial, "name": "../../other"}]},
        {"asked": {}, "trials": [{**trial, "settings": 5}]},
        {"asked": {}, "trials": [{**trial, "parameters": "many"}]},
    ):
        (tmp_path / "out" / "plan.json").write_text(content if isinstance(content, str) else json.dumps(content))
        assert main(["search", "--config", config, "--output", str(tmp_path / "out")]) == 2
        error = capsys.readouterr().err
        assert "plan.json is damaged" in error
        assert error.count("\n") == 1


def test_dry_run_tells_the_space_and_does_nothing(bert, data, tmp_path, capsys):
    config = write_search(tmp_path / "s.yaml", bert, data, trials=4)
    assert main(["search", "--config", config, "--output", str(tmp_path / "out"), "--dry-run", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["candidates"] is None
    assert len(told["first"]) == 4
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
@pytest.mark.parametrize("victim", ["driver", "worker"])
def test_a_kill_loses_no_trial(victim, bert, data, tmp_path):
    config = write_search(tmp_path / "s.yaml", bert, data, epochs=9, trials=12, scheduler="none")
    output = tmp_path / "out"
    arguments = command("search", "--config", config, "--output", output)
    search = subprocess.Popen(arguments, stderr=subprocess.PIPE, text=True)
    wait_for(lambda: len(list(output.glob("runs/*/result.json"))) >= 4)
    before = {path: path.read_bytes() for path in output.glob("runs/*/result.json")}
    if victim == "driver":
        search.kill()
        search.wait()
        search = subprocess.Popen(arguments, stderr=subprocess.PIPE, text=True)
    else:
        wait_for(lambda: workers())
        os.kill(workers()[0], signal.SIGKILL)
    said = search.communicate()[1]
    assert search.returncode == 0, said
    assert {path: path.read_bytes() for path in before} == before
    records = [Record.read(path) for path in output.glob("runs/*/result.json")]
    assert len(records) == 12
    assert all(record.epochs == 9 or record.epochs - record.best_epoch == 5 for record in records)
    assert "12 of 12 trials have a result" in said


def workers():
    """The processes that train."""
    return [
        int(pid) for pid in subprocess.run(["pgrep", "-f", "^ray::.*Trainable"], capture_output=True).stdout.split()
    ]


def wait_for(condition, seconds=240):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it took too long"
        time.sleep(0.5)
