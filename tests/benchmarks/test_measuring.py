import json
import sys
from argparse import Namespace

import measuring
import pytest
import torch
from measuring import Bar, Row, cells, compare, in_turn, parse, publish

ROWS = [
    Row("first", "frozen", {"seconds": 0.010, "to_frozen": 1.0}),
    Row("first", "TT-LoRA r=5", {"seconds": 0.011, "to_frozen": 1.1}, (Bar("of LoRA's overhead", 0.35, 0.31),)),
    Row("second", "TT-LoRA r=5", {"seconds": 2.5, "bytes": 1234.0}, (Bar("x LoRA's peak", 1.0, 1.2),)),
]


def test_contestants_run_in_turn_and_warm_up_rounds_do_not_count():
    order = []
    seconds = in_turn({name: lambda name=name: order.append(name) for name in "abc"}, rounds=4, warm_up=2)
    assert "".join(order) == "abc" * 6
    assert {name: len(runs) for name, runs in seconds.items()} == {"a": 4, "b": 4, "c": 4}


def test_what_is_prepared_is_handed_over_and_not_timed(monkeypatch):
    clock = [0.0]

    def takes(seconds):
        clock[0] += seconds
        return object()

    given = []
    monkeypatch.setattr(measuring.time, "perf_counter", lambda: clock[0])
    contestants = {"quick": lambda x: (given.append(x), takes(1.0)), "slow": lambda x: (given.append(x), takes(3.0))}
    seconds = in_turn(contestants, rounds=3, prepare=lambda: takes(100.0), warm_up=0)
    assert seconds == {"quick": [1.0] * 3, "slow": [3.0] * 3}
    assert len(set(given)) == 6


def test_ratios_are_medians_of_the_rounds_ratios():
    # the machine was ten times slower in the last round
    figures = compare({"frozen": [1.0, 2.0, 20.0], "LoRA r=8": [4.0, 4.0, 40.0], "TT": [1.5, 2.5, 30.0]})
    assert figures["TT"]["seconds"] == 2.5
    assert figures["TT"]["to_frozen"] == 1.5
    assert figures["TT"]["to_lora"] == 0.625
    assert figures["frozen"]["to_frozen"] == figures["LoRA r=8"]["to_lora"] == 1.0
    assert figures["LoRA r=8"]["spread"] == 4.5


def test_a_bar_is_met_up_to_its_limit():
    assert str(Bar("x LoRA", 1.0, 1.0)) == "bar 1 x LoRA: 1, met"
    assert str(Bar("of LoRA's overhead", 0.35, 0.3512)) == "bar 0.35 of LoRA's overhead: 0.351, NOT MET"


@pytest.mark.parametrize("markdown", [True, False])
def test_what_is_published(tmp_path, capsys, markdown):
    file = tmp_path / "figures.json"
    publish(
        Namespace(rounds=7, threads=3, device="cpu", dtype=torch.bfloat16, json=file, markdown=markdown), "layer", ROWS
    )
    printed = capsys.readouterr().out
    assert "first, TT-LoRA r=5: bar 0.35 of LoRA's overhead: 0.31, met" in printed
    assert "second, TT-LoRA r=5: bar 1 x LoRA's peak: 1.2, NOT MET" in printed
    assert "bfloat16, 3 threads; medians of 7 rounds in turn; " in printed
    assert f"torch {torch.__version__}" in printed
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in printed.splitlines()]
    if markdown:
        assert lines[:5] == [
            ["case", "contestant", "ms", "bytes", "x frozen"],
            ["---", "---", "---:", "---:", "---:"],
            ["first", "frozen", "10.00", "", "1.000"],
            ["", "TT-LoRA r=5", "11.00", "", "1.100"],
            ["second", "TT-LoRA r=5", "2,500", "1,234", ""],
        ]

    written = json.loads(file.read_text())
    assert (written["benchmark"], written["threads"], written["dtype"], written["rounds"]) == (
        "layer",
        3,
        "bfloat16",
        7,
    )
    assert written["versions"]["torch"] == torch.__version__
    rows = [Row(r["case"], r["contestant"], r["figures"], tuple(map(bar_of, r["bars"]))) for r in written["rows"]]
    assert rows == ROWS
    assert [bar["met"] for row in written["rows"] for bar in row["bars"]] == [True, False]
    assert list(tmp_path.iterdir()) == [file]


def bar_of(written):
    return Bar(written["of"], written["limit"], written["figure"])


def test_why_there_are_no_figures_is_said_in_the_last_column():
    header, *lines = cells([ROWS[0], Row("first", "LoRA r=8", {}, note="out of memory")])
    assert header == ["case", "contestant", "ms", "x frozen", "note"]
    assert lines == [["first", "frozen", "10.00", "1.000", ""], ["", "LoRA r=8", "", "", "out of memory"]]


def parse_with(monkeypatch, *flags, **options):
    monkeypatch.setattr(sys, "argv", ["layer.py", *map(str, flags)])
    # the tests' own threads stay as they are
    threads = []
    monkeypatch.setattr(torch, "set_num_threads", threads.append)
    return parse("What is measured.", **options), threads


def test_flags(monkeypatch, tmp_path):
    arguments, threads = parse_with(monkeypatch)
    assert (arguments.rounds, arguments.dtype, arguments.markdown, arguments.json) == (15, torch.float32, False, None)
    assert threads == [2]
    flags = ("--rounds", 3, "--threads", 1, "--dtype", "bfloat16", "--json", tmp_path / "a.json", "--markdown")
    arguments, threads = parse_with(monkeypatch, *flags, rounds=101)
    assert (arguments.rounds, arguments.dtype, arguments.markdown) == (3, torch.bfloat16, True)
    assert arguments.json == tmp_path / "a.json"
    assert threads == [1]


def test_a_benchmark_may_have_flags_and_defaults_of_its_own(monkeypatch):
    options = {"--layers": {"type": int, "default": 2}}
    arguments, _ = parse_with(monkeypatch, "--layers", 3, options=options, dtype="bfloat16")
    assert (arguments.layers, arguments.dtype) == (3, torch.bfloat16)


@pytest.mark.parametrize(("flags", "said"), [(("--rounds", 1), "--rounds 1"), (("--threads", -1), "--threads -1")])
def test_too_few_rounds_or_threads_are_refused(monkeypatch, capsys, flags, said):
    with pytest.raises(SystemExit) as stopped:
        parse_with(monkeypatch, *flags)
    assert stopped.value.code == 2
    assert said in capsys.readouterr().err


def test_a_file_that_is_there_is_refused_before_anything_is_measured(monkeypatch, capsys, tmp_path):
    file = tmp_path / "figures.json"
    file.write_text("kept")
    with pytest.raises(SystemExit) as stopped:
        parse_with(monkeypatch, "--json", file)
    assert stopped.value.code == 2
    assert str(file) in capsys.readouterr().err
    assert file.read_text() == "kept"
