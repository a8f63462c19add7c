"""What is measured of serving, at a toy size and with a stand-in for the engine."""

import sys

import pytest
import serving
import torch
from contestants import TT, adapter_configs, llama
from measuring import LORA

from tests.benchmarks.test_contestants import SIZES
from ttlora.adapters.read import read_adapter


@pytest.fixture
def model():
    with torch.device("meta"):
        return llama(torch.float32, **SIZES)


def test_adapters_are_written_without_weights(model, tmp_path):
    for name, config in adapter_configs().items():
        folders = serving.write(model, config, tmp_path / name, 3, first=1)
        assert [folder.name for folder in folders] == [f"{name}-1", f"{name}-2"]
        one, other = map(read_adapter, folders)
        (key,) = list(one.modules["model.layers.0.self_attn.q_proj"])[:1]
        assert not torch.equal(one.load(key), other.load(key)), name


def test_a_cold_adapter(model):
    configs = adapter_configs()
    ours, expanded, lora = serving.cold("case", model, {TT: configs[TT], LORA: configs[LORA]}, rounds=3)
    assert [row.contestant for row in (ours, expanded, lora)] == [TT, serving.EXPANDED, LORA]
    assert 0 < ours.figures["seconds"] <= ours.figures["p95"] <= ours.figures["p99"]
    assert ours.figures["bytes_to_lora"] == ours.figures["bytes"] / lora.figures["bytes"]
    ((of, limit),) = [(bar.of, bar.limit) for bar in ours.bars]
    assert (of, limit) == ("s for a cold adapter", 0.15)


@pytest.mark.parametrize(("on_disk", "least", "most"), [(1, 0.97, 0.98), (5, 0.87, 0.88), (20, 0.2, 0.6)])
def test_requests_in_a_skewed_order(on_disk, least, most, model):
    row = serving.skewed(model, {TT: adapter_configs()[TT]}, on_disk, kept=5, requests=40)
    assert row.contestant == f"{TT}, {on_disk} on disk"
    # the cache has none at the beginning, and five at most
    assert least <= row.figures["hits"] <= most
    assert [bar.figure for bar in row.bars] == [row.figures["p95"]]


class Engine:
    """Knows what it was asked for, and takes a second for the base, 2 for what is warm, 3 and 4 for cold ones."""

    def __init__(self, place):
        self.place, self.known, self.asked = place, set(), []

    def unload(self, adapter):
        self.known.discard(adapter)

    def first_token(self, adapter):
        self.asked.append(adapter)
        if adapter is None or adapter in self.known:
            return 1.0 if adapter is None else 2.0
        assert adapter.startswith("lora") or not list((self.place / "cache").iterdir())
        (self.place / "cache" / adapter).mkdir()
        self.known.add(adapter)
        return 3.0 if adapter.startswith("tt") else 4.0


@pytest.mark.parametrize(("on_disk", "numbers"), [(1, "0000"), (9, "6036")])
def test_first_tokens(on_disk, numbers, tmp_path):
    (tmp_path / "cache").mkdir()
    engine = Engine(tmp_path)
    rows = serving.first_tokens(engine, tmp_path, on_disk, rounds=3)
    assert [name.partition("-")[2] for name in engine.asked if name and name.startswith("tt")][::2] == list(numbers)
    figures = {row.contestant: row.figures for row in rows}
    assert {name: of["seconds"] for name, of in figures.items()} == {
        serving.BASE: 1.0,
        f"{TT}, cold": 3.0,
        f"{LORA}, cold": 4.0,
        f"{TT}, warm": 2.0,
        f"{LORA}, warm": 2.0,
    }
    assert figures[f"{TT}, cold"]["to_lora"] == 0.75
    assert (figures[f"{TT}, cold"]["over_warm"], figures[f"{LORA}, cold"]["over_warm"]) == (1.0, 2.0)


def test_wrong_use_is_one_line(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(sys, "argv", ["serving.py", "--threads", "1", "--model", str(tmp_path)])
    monkeypatch.setattr(serving.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SystemExit) as ended:
        serving.main()
    assert ended.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1
