import json
import os
import re
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.conftest import command
from ttlora.cli.main import main
from ttlora.finetune.trainer import TaskTrainer


@pytest.fixture
def flags(bert: Path, data: Path, tmp_path: Path) -> list[str]:
    short = ["--epochs", "2", "--batch-size", "8", "--threads", "1"]
    return ["--model", str(bert), "--task", "glue/sst2", "--data", str(data), "--output", str(tmp_path / "out"), *short]


def test_tells_what_a_user_wants_to_know_and_nothing_else(flags, tmp_path):
    done = subprocess.run(command("train", *flags), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    number, epoch = r"[\d,]+", r"epoch [12]/2  training loss \S+  validation loss \S+  accuracy \S+  \S+ s"
    assert re.fullmatch(
        rf"tt-lora on bert: {number} parameters train in the model and 1,122 in its head, {number} are frozen\n"
        rf"task glue/sst2: 48 training rows, 24 validation rows, at most 40 tokens each\n{epoch}\n{epoch}\n",
        done.stderr,
    )
    assert re.fullmatch(
        r"accuracy 0\.\d{4}, validation loss \d\.\d{4} \(epoch [12] of 2\), measured from the saved adapter\n"
        rf"{tmp_path}/out/adapter: {number} parameters, 1,122 more in the head, {number} bytes\n",
        done.stdout,
    )


def test_json_is_the_result_record(flags, tmp_path, ttlora):
    outcome = ttlora("train", *flags, "--json")
    assert outcome.status == 0
    assert json.loads(outcome.out) == json.loads((tmp_path / "out" / "result.json").read_text())


def test_recipe_in_yaml_gives_the_same_run(flags, tmp_path, ttlora, capsys):
    assert main(["train", *flags, "--print_config"]) == 0
    (tmp_path / "r.yaml").write_text(capsys.readouterr().out)
    by_flags = json.loads(ttlora("train", *flags, "--json").out)
    by_yaml = json.loads(ttlora("train", "--config", tmp_path / "r.yaml", "--output", tmp_path / "b", "--json").out)
    assert by_yaml["validation_loss"] == by_flags["validation_loss"]
    written = tmp_path / "out" / "recipe.yaml"
    again = json.loads(ttlora("train", "--config", written, "--output", tmp_path / "c", "--json").out)
    assert again["validation_loss"] == by_flags["validation_loss"]


def test_relative_paths_are_kept_as_absolute_ones(flags, tmp_path, ttlora, monkeypatch, bert):
    monkeypatch.chdir(bert.parent)
    assert ttlora("train", *flags[2:], "--model", "bert").status == 0
    monkeypatch.chdir("/")
    assert ttlora("evaluate", tmp_path / "out").status == 0


def test_resume_of_a_finished_run_says_so(flags, tmp_path, ttlora):
    first = ttlora("train", *flags)
    again = ttlora("train", *flags, "--resume")
    assert (again.status, again.out) == (0, first.out)
    assert again.err == f"{tmp_path / 'out'} holds the finished run: nothing was done\n"


def test_resume_from_a_recipe_file_with_resume_in_it(flags, tmp_path, ttlora):
    (tmp_path / "r.yaml").write_text("resume: true\n")
    assert ttlora("train", *flags, "--config", tmp_path / "r.yaml").status == 0
    assert "nothing was done" in ttlora("train", *flags, "--config", tmp_path / "r.yaml").err


def test_failed_run_exits_with_1(flags, ttlora):
    outcome = ttlora("train", *flags, "--learning-rate", "1e30")
    assert (outcome.status, outcome.out) == (1, "")
    assert re.search(
        r"^ttlora: error: the \w+ loss is \w+ at step \d+: start again with a lower", outcome.err, re.MULTILINE
    )


def test_ctrl_c_tells_how_to_go_on(flags, tmp_path, ttlora, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(TaskTrainer, "training_step", interrupt)
        outcome = ttlora("train", *flags)
    assert outcome.status == 130
    assert outcome.err.splitlines()[-1] == (
        "ttlora: stopped; the same command with --resume goes on from the last finished epoch"
    )
    assert "Traceback" not in outcome.err
    assert ttlora("train", *flags, "--resume").status == 0


def test_ctrl_c_in_a_real_process(flags, tmp_path):
    process = subprocess.Popen(
        command("train", *flags[:8], "--batch-size", "8", "--threads", "1", "--epochs", "2000", "--patience", "2000"),
        stderr=subprocess.PIPE,
        text=True,
        # a test run in the background ignores SIGINT, and its children would inherit that
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    deadline = time.monotonic() + 60
    while not (tmp_path / "out" / "log.jsonl").exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGINT)
    error = process.communicate(timeout=60)[1]
    assert process.returncode == 130
    assert "Traceback" not in error
    assert error.splitlines()[-1].startswith("ttlora: stopped; the same command with --resume")
