"""torch.compile of adapted models, and torch.export of merged ones."""

import warnings

import pytest
import torch
from peft import get_peft_model
from transformers import AutoModel, AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel

from tests.ecosystem.conftest import IDS, logits
from ttlora import TTLoraConfig


def build(kind, folders):
    """One layer: tracing takes seconds a layer."""
    if kind == "gpt2":  # Conv1D
        sizes = {"vocab_size": 24, "n_embd": 24, "n_layer": 1, "n_head": 4, "n_positions": 32, "eos_token_id": 2}
        return GPT2LMHeadModel(GPT2Config(**sizes, resid_pdrop=0, embd_pdrop=0, attn_pdrop=0))
    auto = AutoModel if kind == "bert" else AutoModelForCausalLM
    return auto.from_pretrained(folders[kind], dtype=torch.float32, num_hidden_layers=1)


def output_and_gradients(call, model, ids=IDS):
    model.zero_grad()
    torch.manual_seed(3)  # for dropout
    output = call(input_ids=ids)[0]
    output.square().mean().backward()
    return output.detach(), {n: p.grad.clone() for n, p in model.named_parameters() if p.requires_grad}


def check(compiled, model, ids=IDS):
    got, gradients = output_and_gradients(compiled, model, ids)
    expected, plain_gradients = output_and_gradients(model, model, ids)
    torch.testing.assert_close(got, expected)
    assert gradients.keys() == plain_gradients.keys()
    for name, gradient in gradients.items():
        assert gradient.count_nonzero() > 0
        torch.testing.assert_close(gradient, plain_gradients[name])


pytestmark = pytest.mark.usefixtures("unchecked_shapes")


@pytest.fixture(autouse=True)
def compiled_anew():
    yield
    torch._dynamo.reset()


@pytest.fixture
def folders(bert, llama):
    return {"bert": bert, "llama": llama}


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("llama", {}),
        ("llama", {"target_modules": ["q_proj"], "shape": [2, 64, 8]}),  # rows and columns meet inside a core
        ("gpt2", {"dropout": 0.1}),
        pytest.param("bert", {}, marks=pytest.mark.slow),
        pytest.param("llama", {"target_modules": "all-linear"}, marks=pytest.mark.slow),
    ],
)
def test_one_graph_with_the_same_output_and_gradients(kind, options, folders, random_update):
    model = get_peft_model(build(kind, folders), random_update(**options)).train()
    if kind == "bert":
        model.eval()  # its own dropout
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # such as Dynamo's of functions that it cannot see through
        check(torch.compile(model, backend="aot_eager", fullgraph=True), model)


@pytest.mark.slow
def test_one_graph_for_every_length_of_the_sequence(folders, random_update):
    model = get_peft_model(build("llama", folders), random_update()).train()
    graphs = []

    def count(graph, inputs):
        graphs.append(graph)
        return torch._dynamo.lookup_backend("aot_eager")(graph, inputs)

    compiled = torch.compile(model, backend=count, fullgraph=True, dynamic=True)
    check(compiled, model, IDS)
    first = len(graphs)
    assert first > 0
    for length in (5, 6):
        check(compiled, model, IDS[:, :length].contiguous())
    assert len(graphs) == first


@pytest.mark.slow
def test_training_after_compilation_moves_what_the_graph_uses(folders):
    model = get_peft_model(build("llama", folders), TTLoraConfig()).train()
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    losses = []
    for _ in range(4):
        optimizer.zero_grad()
        loss = compiled(input_ids=IDS, labels=IDS).loss
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses == sorted(losses, reverse=True)
    check(compiled, model)


@pytest.mark.slow
def test_switching_and_disabling_adapters(folders, random_update):
    model = get_peft_model(build("llama", folders), random_update())
    model.add_adapter("other", random_update(r=5))
    model.eval()
    base = logits(build("llama", folders))
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    with torch.no_grad():
        for name in ("default", "other"):
            model.set_adapter(name)
            torch.testing.assert_close(compiled(IDS).logits, logits(model))
        with model.disable_adapter():
            torch.testing.assert_close(compiled(IDS).logits, base)


def test_a_merged_model_is_exported(folders, random_update, tmp_path):
    model = get_peft_model(build("llama", folders), random_update())
    expected = logits(model)
    merged = model.merge_and_unload().eval()
    program = torch.export.export(merged, (IDS,), {"use_cache": False}, strict=False)
    torch.export.save(program, tmp_path / "model.pt2")
    loaded = torch.export.load(tmp_path / "model.pt2").module()
    torch.testing.assert_close(loaded(IDS, use_cache=False).logits, expected, rtol=1e-4, atol=1e-5)


def test_an_adapter_that_is_not_merged_is_exported_too(folders, random_update):
    model = get_peft_model(build("llama", folders), random_update())
    expected = logits(model)
    program = torch.export.export(model.base_model.model, (IDS,), {"use_cache": False}, strict=False)
    torch.testing.assert_close(program.module()(IDS, use_cache=False).logits, expected, rtol=1e-4, atol=1e-5)


class Scaled(torch.nn.Module):
    """A parameter that no layer of its own holds."""

    def __init__(self, *sizes):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.randn(sizes))

    def forward(self, x):
        return x @ self.weight


@pytest.mark.parametrize(
    ("layer", "x", "options"),
    [
        (lambda: torch.nn.Embedding(12, 6), lambda: torch.randint(12, (3, 4)), {}),
        (lambda: torch.nn.Conv1d(4, 6, 3), lambda: torch.randn(2, 4, 9), {}),
        (lambda: torch.nn.Conv2d(4, 6, 3, groups=2), lambda: torch.randn(2, 4, 9, 9), {}),
        (lambda: Scaled(6, 8), lambda: torch.randn(3, 6), {"target_modules": [], "target_parameters": ["0.weight"]}),
        (
            lambda: Scaled(3, 6, 8),
            lambda: torch.randn(3, 2, 6),
            {"target_modules": [], "target_parameters": ["0.weight"]},
        ),
    ],
    ids=["embedding", "conv1d", "conv2d in groups", "parameter", "experts"],
)
def test_other_layers_are_one_graph_too(layer, x, options, random_update):
    model = get_peft_model(torch.nn.Sequential(layer()), random_update(**{"target_modules": ["0"], **options}))
    x = x()
    expected = model(x)
    torch.testing.assert_close(torch.compile(model, backend="aot_eager", fullgraph=True)(x), expected)


def test_attention_is_one_graph_too(random_update):
    class Attending(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.attention = torch.nn.MultiheadAttention(8, 2, batch_first=True)

        def forward(self, x):
            return self.attention(x, x, x)[0]

    model, x = get_peft_model(Attending(), random_update(target_modules=["attention"])), torch.randn(2, 5, 8)
    expected = model(x)
    torch.testing.assert_close(torch.compile(model, backend="aot_eager", fullgraph=True)(x), expected)
