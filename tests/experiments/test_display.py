import time

import pytest

from ttlora.experiments import display
from ttlora.experiments.display import Display
from ttlora.experiments.folder import ComparisonFolder, write_failure
from ttlora.experiments.processes import Running


@pytest.fixture
def folder(tmp_path):
    return ComparisonFolder(tmp_path / "out")


def test_terminal_shows_what_is_at_work_and_what_it_printed_last(terminal, folder, plan):
    runs = plan(methods="[lora, tt-lora]")
    with folder.claim(runs), Display(folder, [(runs[0], 100.0)], runs[1:], 1) as shown:
        folder.log(runs[1]).write_text("begins\nepoch 1/3  training loss [0.5]\n\n")
        shown.began(runs[1])
        shown.at_work([Running(runs[1], None, time.monotonic() - 30)])
    text = terminal.getvalue()
    assert "1 of 2 runs done, 0 failed; about 70 s left" in text
    assert "bert glue/sst2 tt-lora seed 0  30 s  epoch 1/3  training loss [0.5]" in text
    assert "begun" not in text


def test_plain_lines_where_there_is_no_terminal(folder, plan, capsys):
    runs = plan(methods="[lora, tt-lora]")
    with folder.claim(runs), Display(folder, [], runs, 1) as shown:
        shown.began(runs[0])
        shown.at_work([Running(runs[0], None, time.monotonic())])
        write_failure(runs[0], "no [room]")
        shown.ended(runs[0], 200)
    assert capsys.readouterr().err.splitlines() == [
        "begun: bert glue/sst2 lora seed 0",
        "1/2 bert glue/sst2 lora seed 0: failed: no [room] (3 min, how long cannot be told before the first run on a "
        "model is done)",
    ]


def test_long_logs_are_not_read_whole(folder, plan, tmp_path):
    log = tmp_path / "log"
    log.write_bytes(b"\xff" * 10_000 + b"\nlast\n")
    assert display._last_line(log) == "last"
    assert display._last_line(tmp_path / "none") == ""
