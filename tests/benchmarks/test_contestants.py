"""Every benchmark at a toy size: who takes part, that they do the same work, and which bars are shown."""

import gc
from dataclasses import replace

import export
import inference
import layer
import memory
import mixed_batch
import operators
import pytest
import save_load
import step
import torch
import wrap
from contestants import (
    DEFAULT,
    LORA_THERE,
    TT,
    VERA,
    adapted,
    adapter_configs,
    encoder,
    llama,
    llama2_7b_layers,
    sharing_weights,
)
from measuring import LORA, Bar

from tests.cuda.devices import GPU

SIZES = {
    "vocab_size": 32,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 24,
}
IN_STEPS = ["frozen", TT, LORA, VERA, DEFAULT, LORA_THERE]
IDS = torch.randint(0, 32, (4, 6), generator=torch.Generator().manual_seed(0))
BATCHES = {"bert": {"input_ids": IDS, "labels": torch.tensor([0, 1, 1, 0])}, "llama": {"input_ids": IDS, "labels": IDS}}


@pytest.fixture(params=["bert", "llama"])
def model(request):
    return (encoder if request.param == "bert" else llama)(torch.float32, **SIZES)


@pytest.fixture
def batch(model):
    return BATCHES[model.config.model_type]


def shown(rows):
    """Contestants by case, and what carries a bar."""
    cases = {}
    for row in rows:
        assert all(figure > 0 for key, figure in row.figures.items() if not key.startswith(("spread", "overhead")))
        cases.setdefault(row.case, []).append(row.contestant)
    return cases, {(row.case, row.contestant): [(bar.of, bar.limit) for bar in row.bars] for row in rows if row.bars}


def test_layer():
    cases, bars = shown(rows := layer.measure(3, 16, 8, 0.5, torch.float32, rounds=2))
    assert cases == {"16 wide, 8 tokens, 3 layers": ["frozen", TT, LORA, VERA]}
    assert bars == {("16 wide, 8 tokens, 3 layers", TT): [("of LoRA's overhead", 0.5)]}
    figures = {row.contestant: row.figures for row in rows}
    overhead = {name: figures[name]["to_frozen"] - 1 for name in figures}
    assert figures[TT]["overhead_to_lora"] == pytest.approx(overhead[TT] / overhead[LORA])
    assert figures[LORA]["overhead_to_lora"] == 1.0


def test_a_layer_gives_gradients_of_its_input_and_its_adapter():
    x, dy = torch.randn(3, 16, requires_grad=True), torch.randn(3, 16)
    model = torch.nn.Sequential(torch.nn.Linear(16, 16)).requires_grad_(False)
    (dx,) = layer.both_ways(model, x, dy)()
    torch.testing.assert_close(dx, dy @ model[0].weight)
    for name, learned in {TT: 1, LORA: 2, VERA: 2}.items():
        config = adapter_configs(target_modules=["0"])[name]
        gradients = layer.both_ways(adapted(model, config), x, dy)()
        assert len(gradients) == 1 + learned
        torch.testing.assert_close(gradients[0], dx)


def test_step(model, batch):
    cases, bars = shown(step.measure("case", model, batch, rounds=2))
    assert cases == {"case": IN_STEPS}
    assert bars == {
        ("case", TT): [("x the frozen model", 1.03), ("x LoRA", 1.0)],
        ("case", DEFAULT): [("x the frozen model", 1.06)],
    }


def test_all_steps_reach_the_embeddings_and_train_no_more_than_adapter_and_head(model, batch):
    weights = {name: weight.clone() for name, weight in model.state_dict().items()}
    for name, contestant in step.contestants(model).items():
        outputs = []
        embeddings = contestant.get_input_embeddings()
        handle = embeddings.register_forward_hook(lambda *given, to=outputs: to.append(given[-1]))
        trained = {n: p.detach().clone() for n, p in contestant.named_parameters() if p.requires_grad}
        run = step.step(contestant, batch)
        run()
        handle.remove()
        assert [output.grad.count_nonzero() > 0 for output in outputs] == [True], name
        changed = {n for n, p in contestant.named_parameters() if n in trained and not torch.equal(p, trained[n])}
        assert bool(changed) == bool(trained), name
        has_head = any("classifier" in parameter for parameter in changed)
        assert has_head == (model.config.model_type == "bert"), name
    assert all(torch.equal(weight, weights[name]) for name, weight in model.state_dict().items())


def test_memory_is_the_same_in_every_run(model, batch):
    rows = memory.measure("case", model, batch)
    cases, bars = shown(rows)
    assert cases == {"case": ["frozen", TT, LORA, VERA]}
    assert bars == {("case", TT): [("x LoRA's peak", 1.0)]}
    assert memory.measure("case", model, batch) == rows


def test_live_bytes_are_those_of_live_storages():
    known = torch.zeros(1000)
    with memory.LiveBytes([known]) as live:
        x = torch.ones(10)
        known.add_(1)
        x.view(2, 5).T.add_(1)
        assert (live.bytes, live.peak) == (40, 40)
        y = x * 2
        del y
        assert (live.bytes, live.peak) == (40, 80)
        z = torch.zeros(5, requires_grad=True)
        kept = (z * 2).exp().sin()
        assert live.bytes == 40 + 20 + 20 + 20  # z, the exponential that the graph keeps, and its sine
        assert live.peak == 40 + 20 + 20 + 20
        del kept
        gc.collect()
        assert live.bytes == 60
    assert live.bytes == 60


def test_peak_is_that_of_the_second_run():
    kept = []

    def run():
        if not kept:
            torch.zeros(1000)  # only the first run, such as what an optimizer's start needs
            kept.append(torch.zeros(10))
        torch.zeros(20)

    assert memory.peak_bytes(torch.nn.Linear(2, 2), run) == 4 * 30


def test_inference(model):
    contestants = inference.contestants(model)
    _, bars = shown(inference.measure("model", contestants, IDS, rounds=2))
    assert not bars
    cases, bars = shown(inference.measure("model", contestants, IDS.repeat(32, 1), rounds=2))
    assert cases == {"model, 768 tokens": ["base", TT, LORA, VERA, f"{TT}, merged"]}
    assert bars == {("model, 768 tokens", TT): [("x the base", 1.02)]}
    kinds = {name: type(module.get_submodule(path)) for name, module, path in first_query(contestants)}
    assert kinds["base"] is kinds[f"{TT}, merged"] is torch.nn.Linear
    logits = {name: inference.forward(module, IDS)() for name, module in contestants.items()}
    for name in contestants:
        torch.testing.assert_close(logits[name], logits["base"])
        assert not logits[name].requires_grad


def first_query(contestants):
    for name, module in contestants.items():
        yield name, module, next(n for n, _ in module.named_modules() if n.endswith((".query", ".q_proj")))


def test_mixed_batch():
    model = encoder(torch.float32, **SIZES)
    cases, bars = shown(mixed_batch.measure(model, IDS, (1, 4, 9), rounds=2))
    kinds = [f"{name}, {kind}" for name in (TT, LORA) for kind in ("one active", "mixed batch")]
    assert cases == {f"4 rows, {count} adapters": ["frozen", *kinds] for count in (1, 4, 9)}
    assert bars == {("4 rows, 4 adapters", f"{TT}, mixed batch"): [("x one adapter", 1.05)]}


def test_a_mixed_batch_is_compared_round_by_round():
    of = dict(zip(("one active", "mixed batch"), ([1.0, 10.0, 2.0], [1.5, 11.0, 2.5]), strict=True))
    seconds = {"frozen": [1.0] * 3} | {f"{name}, {kind}": runs for name in (TT, LORA) for kind, runs in of.items()}
    (figures,) = (row.figures for row in mixed_batch.compared("case", seconds, True) if row.bars)
    assert (figures["to_one_adapter"], figures["to_lora"]) == (1.25, 1.0)


@pytest.mark.parametrize(("count", "different"), [(1, 1), (4, 4), (9, 4)])
def test_rows_name_as_many_adapters_as_they_can(monkeypatch, count, different):
    named = []
    forward = mixed_batch.forward

    def spy(model, ids, **names):
        named.append(names.get("adapter_names", []))
        return forward(model, ids, **names)

    monkeypatch.setattr(mixed_batch, "forward", spy)
    mixed_batch.measure(encoder(torch.float32, **SIZES), IDS, (count,), rounds=2)
    assert [len(set(names)) for names in named] == [0, 0, different, 0, different]


def test_wrap():
    with torch.device("meta"):
        on_meta = llama(torch.float32, **SIZES)
    assert shown(wrap.measure("meta", on_meta, rounds=2)) == (
        {"meta": [TT, LORA, VERA]},
        {("meta", TT): [("s for the model", 2.0)]},
    )
    in_memory = llama2_7b_layers(2, torch.float32, hidden_size=32, intermediate_size=8)
    _, bars = shown(rows := wrap.measure("memory", in_memory, rounds=2))
    assert bars == {("memory", TT): [("s a layer", 0.05)]}
    assert all(row.figures["seconds_a_layer"] == row.figures["seconds"] / 2 for row in rows)
    assert rows[0].bars == (Bar("s a layer", 0.05, rows[0].figures["seconds_a_layer"]),)
    assert not any("lora" in name or "vera" in name for name, _ in in_memory.named_parameters())


def test_save_and_load():
    model = llama2_7b_layers(2, torch.bfloat16, hidden_size=32, intermediate_size=8)
    cases, bars = shown(rows := save_load.measure(model, rounds=2))
    assert cases == {"save": [TT, LORA, VERA], "load": [TT, LORA, VERA]}
    assert not bars
    sizes = {row.contestant: row.figures["bytes"] for row in rows}
    # LoRA: 2 x (32 x 8 + 8 x 32) numbers of 2 bytes in each of 2 layers, its header and its config
    assert 4096 < sizes[LORA] < 4096 + 4000
    assert all(row.figures["bytes_to_lora"] == sizes[row.contestant] / sizes[LORA] for row in rows)


def test_export():
    model = llama2_7b_layers(2, torch.float32, hidden_size=32, intermediate_size=8)
    cases, bars = shown(rows := [export.measure(model, rounds=2), export.convert(model)])
    assert cases == {"4 matrices": ["ttlora export"], "1 matrix, once": ["PEFT's convert_to_lora"]}
    assert bars == {("4 matrices", "ttlora export"): [("s for the adapter", 2.0)]}
    assert rows[0].figures["seconds_a_matrix"] == rows[0].figures["seconds"] / 4


def test_exported_logits_are_compared(monkeypatch):
    (bar,) = export.reproduce(llama(torch.float32, **SIZES)).bars
    assert bar.met

    def altered(adapter):
        lora = to_lora(adapter)
        return replace(lora, tensors={key: 1.001 * tensor for key, tensor in lora.tensors.items()})

    to_lora = export.to_lora
    monkeypatch.setattr(export, "to_lora", altered)
    (bar,) = export.reproduce(llama(torch.float32, **SIZES)).bars
    assert not bar.met


def test_llama2_7b_layers_are_those():
    model = llama2_7b_layers(1, torch.bfloat16)
    layer = model.model.layers[0]
    assert layer.self_attn.v_proj.weight.shape == (4096, 4096)
    assert layer.mlp.up_proj.weight.shape == (11008, 4096)
    assert {(p.device.type, p.dtype) for p in model.parameters()} == {("cpu", torch.bfloat16)}


def test_a_copy_shares_weights_and_no_modules():
    model = encoder(torch.float32, **SIZES)
    copied = sharing_weights(model)
    assert {id(p) for p in copied.parameters()} == {id(p) for p in model.parameters()}
    assert not {id(m) for m in copied.modules()} & {id(m) for m in model.modules()}


@pytest.mark.parametrize(
    "case",
    [
        "float32",
        "bfloat16 under autocast",
        pytest.param("bfloat16", marks=pytest.mark.slow),
        pytest.param("float32 under autocast", marks=pytest.mark.slow),
    ],
)
@pytest.mark.parametrize("device", ["cpu", GPU])
def test_operators(case, device):
    with torch.device(device):
        rows = operators.measure(case, vocab_size=64, intermediate_size=64)
    assert shown(rows)[1] == {(case, TT): [("operators a matrix", operators.BARS[case][-1])]}
    counts = {row.contestant: row.figures["operators_a_matrix"] for row in rows}
    assert all(bar.met for row in rows for bar in row.bars), counts
    # six products, and what the factors of all layers together cost a matrix
    assert 6 < counts[TT] < counts[LORA] < counts[VERA]
