"""The benchmark for GPUs, all of it, at a toy size: on a CPU too, so that it runs when there is a GPU."""

import json
import sys

import gpu
import pytest
import torch
from contestants import TT, VERA
from measuring import LORA

from tests.cuda.devices import GPU
from ttlora.finetune.machine import cpu_threads

TRAINED = ["frozen", TT, LORA, VERA]


@pytest.fixture(params=["cpu", GPU])
def device(request):
    return request.param


@pytest.fixture
def run(monkeypatch, tmp_path, device):
    """Runs the script; what it returns, and what stands in its file."""
    monkeypatch.setattr(gpu, "MODELS", {"LLaMA-3-8B": "llama3-8b"})
    monkeypatch.setattr(gpu, "TINY_BATCHES", ((4, 8),))

    def call(*flags):
        file = tmp_path / "gpu.json"
        given = ["--tiny", "--device", device, "--threads", 1, "--rounds", 2, "--json", file, *flags]
        monkeypatch.setattr(sys, "argv", ["gpu.py", *map(str, given)])
        return gpu.main(), json.loads(file.read_text())

    with cpu_threads(1):  # and the tests' own afterwards
        yield call


def by_case(written):
    cases = {}
    for row in written["rows"]:
        cases.setdefault(row["case"], {})[row["contestant"]] = row
    return cases


def test_every_case_is_measured(run, device, capsys):
    status, written = run()
    printed = capsys.readouterr().out
    assert status == 0, printed
    assert not any(row["note"] for row in written["rows"])
    cases = by_case(written)
    forward = [name for name in cases if "forward" in name]
    assert [list(cases.pop(name)) for name in forward] == [["base", TT, LORA, VERA, f"{TT}, merged"]]
    sizes = ("4 x 8, checkpointing", "4 x 8")
    assert list(cases) == [f"LLaMA-3-8B, {bits} bit, {size}" for bits in (16, 4) for size in sizes]
    for contestants in cases.values():
        assert list(contestants) == TRAINED
        assert all(row["figures"]["seconds"] > 0 for row in contestants.values())
        assert [len(row["bars"]) for row in contestants.values()] == [0, 3, 0, 0]
        assert f"{contestants[TT]['figures']['to_lora']:.3f}" in printed
    assert len(written["seconds"]) == 5
    if device == "cuda":
        return  # it gives memory in pieces that are larger than these tensors
    for contestants in cases.values():
        bytes_of = {name: row["figures"]["bytes"] for name, row in contestants.items()}
        assert bytes_of["frozen"] < bytes_of[TT] < bytes_of[LORA]
    peak = {name: contestants[TT]["figures"]["bytes"] for name, contestants in cases.items()}
    whole = {name: contestants[TT]["figures"]["peak"] for name, contestants in cases.items()}
    for bits in (16, 4):
        assert peak[f"LLaMA-3-8B, {bits} bit, 4 x 8, checkpointing"] < peak[f"LLaMA-3-8B, {bits} bit, 4 x 8"]
    assert whole["LLaMA-3-8B, 4 bit, 4 x 8"] < whole["LLaMA-3-8B, 16 bit, 4 x 8"]


def test_who_finds_no_memory_is_named_and_the_rest_goes_on(run, monkeypatch, capsys):
    peak_of_step = gpu.peak_of_step

    def small(model, step):
        if not any(p.requires_grad for p in model.parameters()) or "lora_A" in str(model):
            raise torch.OutOfMemoryError("CUDA out of memory")
        return peak_of_step(model, step)

    def quantise(*model):
        raise ModuleNotFoundError("No module named 'bitsandbytes'")

    monkeypatch.setattr(gpu, "peak_of_step", small)
    monkeypatch.setattr(gpu, "quantise", quantise)
    status, written = run()
    assert status == 1
    cases = by_case(written)
    (four,) = cases.pop("LLaMA-3-8B, 4 bit").values()
    assert four["note"] == "ModuleNotFoundError: No module named 'bitsandbytes'"
    assert "out of memory" in capsys.readouterr().out
    for name, contestants in cases.items():
        if "forward" not in name:
            notes = {contestant: row["note"] for contestant, row in contestants.items()}
            assert notes == {"frozen": gpu.OUT_OF_MEMORY, TT: "", LORA: gpu.OUT_OF_MEMORY, VERA: ""}
            assert contestants[TT]["figures"].keys() == {"seconds", "spread", "bytes", "peak"}
            assert contestants[LORA]["figures"] == {}


def test_no_case_begins_when_the_time_is_up(run):
    status, written = run("--seconds", 0)
    assert status == 0
    assert {row["note"] for row in written["rows"]} == {gpu.NO_TIME}
    assert written["seconds"] == {}


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_one_line_says_so(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["gpu.py"])
    monkeypatch.setattr(torch, "set_num_threads", lambda count: None)
    with pytest.raises(SystemExit) as stopped:
        gpu.main()
    assert stopped.value.code == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("gpu.py: --device cuda cannot be used: ")
    assert printed.err.count("\n") == 1
