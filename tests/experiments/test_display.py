import time

import pytest

from ttlora.experiments import display
from ttlora.experiments.display import Display
from ttlora.experiments.folder import RunsFolder


@pytest.fixture
def folder(tmp_path):
    folder = RunsFolder(tmp_path / "out", "comparison")
    with folder.claim():
        folder.write_plan({"runs": []})
    return folder


def test_terminal_shows_what_is_at_work_and_what_it_printed_last(terminal, folder, plan, end):
    runs = plan(methods="[lora, tt-lora]")
    end(runs[0], 0.5, seconds=100.0)
    with Display(folder, runs[:1], [runs[1].likeness], 1) as shown:
        folder.log(runs[1].name).write_text("begins\nepoch 1/3  training loss [0.5]\n\n")
        shown.began(runs[1])
        shown.began_at[runs[1].name] = time.monotonic() - 30
        shown.at_work([runs[1]])
    text = terminal.getvalue()
    assert "1 of 2 runs done, 0 failed; about 70 s left" in text
    assert "30 s  epoch 1/3  training loss [0.5]  bert glue/sst2 tt-lora seed 0" in text
    assert "begun" not in text


def test_plain_lines_where_there_is_no_terminal(folder, plan, capsys):
    runs = plan(methods="[lora, tt-lora]")
    with Display(folder, [], [run.likeness for run in runs], 1) as shown:
        shown.began(runs[0])
        shown.began(runs[0])
        shown.began_at[runs[0].name] = time.monotonic() - 200
        shown.at_work([runs[0]])
        runs[0].fail("no [room]")
        shown.ended(runs[0])
    assert capsys.readouterr().err.splitlines() == [
        "begun: bert glue/sst2 lora seed 0",
        "1/2 bert glue/sst2 lora seed 0: failed: no [room] (3 min, the time left is not known "
        "before a first run is done)",
    ]


def test_what_was_done_before_is_counted_and_not_told_again(folder, plan, end, capsys):
    runs = plan(methods="[lora, tt-lora]")
    end(runs[0], 0.4, epochs=runs[0].recipe.epochs)
    with Display(folder, runs[:1], [runs[1].likeness], 1) as shown:
        for run in runs:
            shown.began(run)
            end(run, 0.5, epochs=run.recipe.epochs)
            shown.ended(run)
    assert capsys.readouterr().err.splitlines() == [
        "begun: bert glue/sst2 tt-lora seed 0",
        "2/2 bert glue/sst2 tt-lora seed 0: accuracy 0.5000 (0 s)",
    ]
    assert shown.best[1].startswith("loss 0.4000, accuracy 0.5000, bert glue/sst2 lora")


def test_terminal_shows_how_far_a_search_is(terminal, begun, end):
    trials = [begun.trial(candidate) for candidate in begun.space.candidates(4, "random", 0)]
    with Display(begun.folder, [], [trials[0].likeness] * 4, 1) as shown:
        shown.epoch(trials[0], 1, 0.6, 0.61)
        end(trials[0], 0.6, 0.61, epochs=1)
        shown.ended(trials[0])
        end(trials[1], 0.45, 0.75)
        shown.ended(trials[1])
        trials[2].fail("the loss [is] nan")
        shown.ended(trials[2])
        shown.epoch(trials[3], 1, 0.65, 0.55)
        shown.at_work([trials[3]])
    text = terminal.getvalue()
    assert "1/4 trial 0001" in text
    assert f"({trials[0].parameters:,} parameters): accuracy 0.6100, stopped after epoch 1" in text
    assert "failed: the loss [is] nan" in text
    assert "2 of 4 runs done, 1 failed; about 1 s left" in text
    assert "best so far: loss 0.4500, accuracy 0.7500, trial 0002" in text
    assert "epoch 1/2  loss 0.6500" in text


def test_long_logs_are_not_read_whole(tmp_path):
    log = tmp_path / "log"
    log.write_bytes(b"\xff" * 10_000 + b"\nlast\n")
    assert display._last_line(log) == "last"
    assert display._last_line(tmp_path / "none") == ""
