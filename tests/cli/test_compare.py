"""The command `ttlora compare`: a plan, runs that end once, and what a person is told."""

import importlib.util
import json
import os
import re
import signal
import subprocess
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.conftest import command
from ttlora.cli.compare import compare
from ttlora.errors import UserError
from ttlora.experiments import display
from ttlora.experiments.comparison import shipped_recipes
from ttlora.record import Record


@pytest.fixture
def config(bert, data, tmp_path):
    """A YAML file for runs of a second or two, with the given methods."""

    def write(methods: str = "[lora, head]", **keys: object) -> str:
        path = tmp_path / "tiny.yaml"
        shared = {"data": data, "epochs": 1, "batch_size": 8, "threads": 1, **keys}
        lines = [f"models: [{bert}]", "tasks: [glue/sst2]", f"methods: {methods}"]
        path.write_text("\n".join([*lines, *(f"{key}: {value}" for key, value in shared.items())]))
        return str(path)

    return write


@pytest.fixture
def out(tmp_path):
    return tmp_path / "out"


@pytest.fixture
def without_ray(monkeypatch):
    """As where the extra is not installed that brings Ray."""
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "ray" else find_spec(name))


@pytest.fixture
def unreported(monkeypatch):
    """Leave the report away, which takes seconds."""

    def leave_away():
        monkeypatch.setattr("ttlora.report.report.write_report", lambda *_: SimpleNamespace(notes=("a note",)))
        monkeypatch.setattr("ttlora.cli.report.print_report", lambda _: None)

    return leave_away


def records(out: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in out.glob("runs/*/result.json")}


def test_runs_once_and_reports(config, out, capsys, monkeypatch, unreported):
    monkeypatch.setenv("COLUMNS", "300")
    assert compare(config=config(), output=str(out)) == 0
    first = capsys.readouterr()
    assert first.out.endswith(f"{out}/report/report.html\n")
    assert first.err.endswith(f"2 of 2 runs done: {out}\n")
    assert sorted(path.name for path in out.iterdir()) == ["logs", "plan.json", "report", "runs"]
    lines = first.err.splitlines()
    assert lines[0] == "2 runs: 2 waiting; the time left is not known before a first run is done"
    assert lines[1] == "begun: bert glue/sst2 lora seed 0"
    assert re.fullmatch(r"1/2 bert glue/sst2 lora seed 0: accuracy [01]\.\d{4} \(\d+ s, about \d+ s left\)", lines[2])
    assert re.fullmatch(r"2/2 bert glue/sst2 head seed 0: accuracy [01]\.\d{4} \(\d+ s\)", lines[4])
    assert {Record.read(path).method for path in records(out)} == {"lora", "head"}
    assert (out / "report" / "report.html").is_file()

    unreported()
    before = records(out)
    assert compare(config=config(), output=str(out), json=True) == 0
    again = capsys.readouterr()
    assert again.err == f"2 runs: 2 done\nleft out of the report: a note\n2 of 2 runs done: {out}\n"
    assert records(out) == before
    content = json.loads(again.out)
    assert content["report"] == str(out / "report")
    assert [(run["label"], run["state"], run["error"]) for run in content["runs"]] == [
        ("lora", "done", None),
        ("head", "done", None),
    ]

    # a changed configuration keeps the run that still fits
    assert compare(config=config("[lora, {method: head, learning_rate: 0.1}]"), output=str(out)) == 0
    changed = capsys.readouterr().err.splitlines()
    assert changed[0] == "the configuration has changed: 1 run new, the first is bert glue/sst2 head seed 0"
    assert changed[1].startswith(f"no longer in the configuration: 1 run in {out}/runs, which stay there, but not in")
    assert re.fullmatch(r"2 runs: 1 done, 1 waiting; about \d+ s left", changed[2])
    assert len(records(out)) == 3
    assert before.items() <= records(out).items()


def test_failed_run_is_told_and_done_again_only_when_asked(config, out, capsys, unreported, without_ray):
    unreported()
    methods = config("[{method: lora, learning_rate: 1e30}, head]")
    assert compare(config=methods, output=str(out)) == 1
    told = capsys.readouterr()
    assert f"1 of 2 runs done: {out}\n" in told.err
    assert re.search(r"^1/2 bert glue/sst2 lora seed 0: failed: the \w+ loss is", told.err, re.MULTILINE)
    last = told.err.splitlines()[-1]
    assert re.fullmatch(r"1 failed, the first with: the \w+ loss is .* \(--retry-failed does them again\)", last)
    assert compare(config=methods, output=str(out)) == 1
    assert "begun" not in capsys.readouterr().err
    assert compare(config=methods, output=str(out), retry_failed=True) == 1
    assert "begun: bert glue/sst2 lora seed 0" in capsys.readouterr().err


@pytest.mark.parametrize("keys", [{"parallel": 2}, {"address": "auto"}])
def test_what_needs_ray_says_so(keys, config, out, without_ray):
    (name,) = keys
    with pytest.raises(UserError, match=rf"`{name}`.* needs ray, which is not installed: .*ttlora\[search\]"):
        compare(config=config(), output=str(out), **keys)
    assert not out.exists()


def test_ctrl_c_is_one_line(config, out, capsys, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(display.Display, "at_work", interrupt)
    assert compare(config=config(), output=str(out)) == 130
    assert capsys.readouterr().err.splitlines()[-1] == "ttlora: stopped; the same command goes on where it was"
    assert not records(out)


def test_dry_run_reads_no_weights_and_writes_nothing(config, out, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    assert compare(config="deberta-glue", output=str(out), dry_run=True) == 0
    told = capsys.readouterr()
    assert told.err.startswith("deberta-glue: the recipe that comes with ttlora, ")
    assert "tasks: glue/mnli, glue/sst2, glue/mrpc" in told.out
    assert "deberta-base tt-lora: 24 waiting (seeds 0, 1, 2)" in told.out
    assert "264 runs: 264 waiting; the time left is not known" in told.out
    assert "deberta-base: 139,194,627 parameters; LoRA r=8 trains 294,912" in told.out
    assert re.search(r"tt-lora r=5 +22,080 +592,899 +6,304 +13 +0\.02M", told.out)
    assert not out.exists()


def test_dry_run_in_json(config, out, ttlora):
    outcome = ttlora("compare", "--config", config(), "--output", out, "--dry-run", "--json")
    assert (outcome.status, outcome.err) == (0, "")
    content = json.loads(outcome.out)
    assert [run["state"] for run in content["runs"]] == ["waiting", "waiting"]
    assert (content["seconds_left"], content["runs_of_unknown_duration"]) == (None, 2)
    assert [count["method"] for count in content["parameters"]] == ["lora", "head"]
    assert content["parameters"][0]["adapter"] == 2 * 2 * 8 * (32 + 32)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"parallel": 0}, "`parallel` is 0, and has to be at least 1"),
        ({"config": "deberta-gleu"}, "did you mean deberta-glue?"),
        ({"output": "."}, "output folder .* holds other files"),
        ({"config": "lost.yaml"}, "lost.yaml: data /nowhere/sst2 is not there, of .*; nothing was begun"),
    ],
)
def test_wrong_use(keys, message, config, out, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    Path(config(data="/nowhere")).rename("lost.yaml")
    with pytest.raises(UserError, match=message):
        compare(**{"config": config(), "output": str(out), **keys})
    assert not out.exists()


def test_misspelt_key_is_one_line_with_its_place(config, out, ttlora):
    path = config("[lora, {method: tt-lora, learning_rat: 1}]")
    outcome = ttlora("compare", "--config", path, "--output", out)
    assert (outcome.status, outcome.out) == (2, "")
    assert outcome.err == (
        f"ttlora: error: {path}, methods entry 2: unknown key 'learning_rat': did you mean learning_rate?\n"
    )


def test_help_names_every_recipe_that_is_shipped():
    assert all(name in str(compare.__doc__) for name in shipped_recipes())


def test_folder_is_named_as_the_file(config, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert compare(config=config(), dry_run=True, json=True) == 0
    assert json.loads(capsys.readouterr().out)["output"] == str(tmp_path / "tiny")


@pytest.mark.slow
@pytest.mark.parametrize("signum", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_command_that_is_killed_goes_on(signum, config, out):
    """However it ends, no process of it is left, and the same command brings all runs to their end."""
    arguments = command("compare", "--config", config("[lora, head]", epochs=80, patience=80), "--output", out)
    process = subprocess.Popen(
        arguments,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    deadline = time.monotonic() + 120
    while not list(out.glob("runs/*/checkpoints/progress.json")):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    os.kill(process.pid, signum)
    error = process.communicate(timeout=60)[1]
    assert process.returncode == {signal.SIGKILL: -9, signal.SIGTERM: 143, signal.SIGINT: 130}[signum]
    assert "Traceback" not in error
    time.sleep(2)
    assert not [line for line in subprocess.check_output(["ps", "ax"], text=True).splitlines() if str(out) in line]
    again = subprocess.run(command(*arguments[1:]), capture_output=True, text=True, timeout=600)
    assert again.returncode == 0, again.stderr
    assert "1 unfinished, 1 waiting" in again.stderr
    assert len(records(out)) == 2
    assert "going on after epoch" in "".join(path.read_text() for path in out.glob("logs/*.log"))
