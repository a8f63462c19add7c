"""PEFT's promises, for adapters whose parameters serve many layers at once."""

import copy

import pytest
import torch
from accelerate import cpu_offload
from peft import get_peft_model
from peft.tuners.lora.conversion import convert_to_lora
from torch import nn

from tests.tuners.shared.methods import RANDOM, layers_of, logits, random_model, relative, trained_of
from ttlora import TTLoraConfig
from ttlora.tuners.shared.layer import SharedEntries


@pytest.fixture(params=["bert", "llama", "gpt2", "t5"])
def some(architectures, request):
    """Linear layers, grouped-query attention, transposed weights, and an encoder with a decoder."""
    return architectures[request.param]


ALL_LINEAR = {"target_modules": "all-linear", "task_type": "SEQ_CLS"}


class TestSomeArchitectures:
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    def test_a_zero_update_leaves_every_bit_of_the_logits(self, some, make, dtype):
        expected = logits(some.build(dtype=dtype), some.inputs)
        model = get_peft_model(some.build(dtype=dtype), make())
        assert len(layers_of(model)) == some.queries_and_values
        assert torch.equal(logits(model, some.inputs), expected)

    def test_one_vector_a_size_trains(self, some, make):
        model = random_model(some, make)
        trained = trained_of(model)
        assert all(name.endswith(".default.entries") for name in trained)
        shared = {layer.updates["default"].shared for layer in layers_of(model).values()}
        assert len(trained) == len(shared) <= 2
        model(**some.inputs).logits.square().sum().backward()
        assert all(p.grad.count_nonzero() > 0 for p in trained.values())

    def test_factors_from_one_contraction_are_those_of_each_layer(self, some, make):
        model = random_model(some, make, **ALL_LINEAR)
        together = model(**some.inputs).logits
        # without the tuner around it, every layer builds its own
        torch.testing.assert_close(model.base_model.model(**some.inputs).logits, together, rtol=1e-3, atol=1e-4)
        gradients = []
        for called in (model, model.base_model.model):
            called(**some.inputs).logits.square().sum().backward()
            gradients.append([p.grad for p in trained_of(model).values()])
            model.zero_grad(set_to_none=True)
        torch.testing.assert_close(*gradients, rtol=1e-3, atol=1e-3)

    @pytest.mark.parametrize("use_reentrant", [False, True])
    def test_gradient_checkpointing_changes_no_gradient(self, some, make, use_reentrant):
        def gradients(model):
            torch.manual_seed(0)  # for dropout
            model.train()(**some.inputs).logits.square().sum().backward()
            return [p.grad for p in trained_of(model).values()]

        plain = random_model(some, make)
        checkpointed = copy.deepcopy(plain)
        checkpointed.enable_input_require_grads()
        checkpointed.gradient_checkpointing_enable({"use_reentrant": use_reentrant})
        torch.testing.assert_close(gradients(checkpointed), gradients(plain), rtol=1e-3, atol=1e-3)

    def test_merge_and_unload(self, some, variant):
        model = random_model(some, variant, **ALL_LINEAR)
        expected = logits(model, some.inputs)
        assert relative(logits(some.build(), some.inputs), expected) > 1e-2
        merged = model.merge_and_unload(safe_merge=True)
        assert type(merged) is some.kind
        assert merged.state_dict().keys() == some.build().state_dict().keys()
        assert relative(logits(merged, some.inputs), expected) < 1e-5

    def test_unload_gives_the_base_model_back(self, some, make):
        model = random_model(some, make)
        assert torch.equal(logits(model.unload(), some.inputs), logits(some.build(), some.inputs))

    def test_a_lora_of_the_same_rank_is_exact(self, some, make):
        model = random_model(some, make)
        expected = logits(model, some.inputs)
        assert model.supports_lora_conversion()
        config, state = convert_to_lora(model, rank=4)
        bare = {key.removeprefix("base_model.model."): tensor for key, tensor in state.items()}
        lora = get_peft_model(some.build(), config)
        named = {f"base_model.model.{key.replace('.weight', '.default.weight')}": bare[key] for key in bare}
        lora.load_state_dict(named, strict=False)
        assert relative(logits(lora, some.inputs), expected) < 1e-4

    def test_the_meta_device(self, some, make):
        with torch.device("meta"):
            base = some.kind(some.config)
        model = get_peft_model(base, make())
        assert sum(map(torch.Tensor.numel, trained_of(model).values())) > 0
        assert all(p.is_meta for p in model.parameters())


class TestSeveralAdapters:
    @pytest.fixture
    def model(self, bert, make):
        model = random_model(bert, make, "first")
        # another rank and scale on the same weights, and weights of its own
        model.add_adapter("second", make(**RANDOM, r=3, alpha=1.0))
        model.add_adapter("third", make(**RANDOM, target_modules=["key", "value"]))
        return model.eval()

    def alone(self, bert, model, name):
        """The logits of one adapter, by merging it."""
        merged = copy.deepcopy(model)
        merged.set_adapter(name)
        return logits(merged.merge_and_unload(), bert.inputs)

    @pytest.mark.parametrize("name", ["second", "third", "first"])
    def test_set(self, bert, model, name):
        model.set_adapter(name)
        torch.testing.assert_close(logits(model, bert.inputs), self.alone(bert, model, name))
        assert {key.split(".")[-2] for key in trained_of(model)} == {name}

    def test_a_layer_has_the_adapters_that_name_it(self, model):
        kinds = {name.rpartition(".")[2]: set(layer.cores) for name, layer in layers_of(model).items()}
        assert kinds == {"query": {"first", "second"}, "value": {"first", "second", "third"}, "key": {"third"}}

    def test_several_at_once_add_up(self, bert, model):
        model.base_model.set_adapter(["first", "third"])
        together = logits(model, bert.inputs)
        merged = model.merge_and_unload(adapter_names=["first", "third"])
        torch.testing.assert_close(logits(merged, bert.inputs), together)

    def test_a_mixed_batch(self, bert, model):
        names = ["second", "__base__", "third"]
        mixed = logits(model, bert.inputs, adapter_names=names)
        base = logits(bert.build(), bert.inputs)
        for row, name in enumerate(names):
            expected = base if name == "__base__" else self.alone(bert, model, name)
            torch.testing.assert_close(mixed[row], expected[row])
        assert relative(mixed[:2], mixed[1:]) > 1e-3

    def test_disable(self, bert, model):
        first = logits(model, bert.inputs)
        with model.disable_adapter():
            assert torch.equal(logits(model, bert.inputs), logits(bert.build(), bert.inputs))
        assert torch.equal(logits(model, bert.inputs), first)

    def test_merge_and_unmerge_in_place(self, bert, model):
        expected = logits(model, bert.inputs)
        model.merge_adapter(["first"])
        torch.testing.assert_close(logits(model, bert.inputs), expected)
        model.unmerge_adapter()
        torch.testing.assert_close(logits(model, bert.inputs), expected)

    def test_delete(self, bert, model):
        expected = self.alone(bert, model, "second")
        model.set_adapter("second")
        model.delete_adapter("first")
        torch.testing.assert_close(logits(model, bert.inputs), expected)
        assert not any("first" in name for name in model.state_dict())
        assert all("first" not in layer.updates for layer in layers_of(model).values())
        model.add_adapter("first", copy.deepcopy(model.peft_config["second"]))

    def test_a_further_one_that_does_not_fit_leaves_the_model_as_it_was(self, bert, make):
        model = random_model(bert, make)
        before = dict(model.named_modules()), {name: p.requires_grad for name, p in model.named_parameters()}
        with pytest.raises(TypeError, match="LayerNorm is not supported"):
            model.add_adapter("other", make(target_modules=["key", "query", "LayerNorm"]))
        assert (dict(model.named_modules()), {n: p.requires_grad for n, p in model.named_parameters()}) == before

    def test_training_one_leaves_the_others(self, bert, model):
        model.set_adapter("second")
        before = {name: p.clone() for name, p in model.named_parameters()}
        model(**bert.inputs).logits.square().sum().backward()
        torch.optim.SGD(model.parameters(), lr=1.0).step()
        changed = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
        assert {name.split(".")[-2] for name in changed} == {"second"}

    def test_requires_grad(self, model):
        assert not model.base_model.set_requires_grad("third")
        assert {key.split(".")[-2] for key in trained_of(model)} == {"first", "third"}
        model.base_model.set_requires_grad(["first", "third"], requires_grad=False)
        assert not trained_of(model)

    def test_beside_an_adapter_of_another_kind_of_layer(self, bert, make):
        inside = get_peft_model(bert.build(), TTLoraConfig(target_modules=["key"], init_weights=False))
        model = get_peft_model(inside.base_model.model, make(**RANDOM))
        logits(model, bert.inputs)


class TestTargets:
    def test_all_linear_leaves_the_head_alone(self, bert, make):
        model = get_peft_model(bert.build(), make(**ALL_LINEAR))
        model.add_adapter("other", make(**ALL_LINEAR))
        assert all(set(layer.cores) == {"default", "other"} for layer in layers_of(model).values())
        assert len(layers_of(model)) == 2 * 6 + 1

    def test_some_layers(self, bert, make):
        model = random_model(bert, make, target_modules=["query", "key", "dense"], layers_to_transform=[1])
        assert {name.split(".")[3] for name in layers_of(model)} == {"1"}
        expected = logits(model, bert.inputs)
        assert relative(logits(model.merge_and_unload(), bert.inputs), expected) < 1e-5

    def test_a_model_without_layers(self, mlp, make):
        model = get_peft_model(mlp(), make(target_modules=["0", "2"], r=2, **RANDOM))
        x = torch.randn(3, 16)
        expected = model(x)
        torch.testing.assert_close(model.merge_and_unload()(x), expected)

    @pytest.mark.parametrize(
        ("options", "error", "message"),
        [
            ({"target_modules": ["nothing"]}, ValueError, "nothing"),
            ({"target_modules": ["word_embeddings"]}, TypeError, "word_embeddings is not supported: Embedding is nei"),
            ({"layers_to_transform": 7}, ValueError, "no layer of that index has a target module"),
        ],
    )
    def test_what_cannot_be_adapted(self, bert, make, options, error, message):
        with pytest.raises(error, match=message):
            get_peft_model(bert.build(), make(**options))


def test_the_head_trains_and_is_saved(bert, make):
    model = get_peft_model(bert.build(), make(task_type="SEQ_CLS"))
    assert {name.split(".")[-1] for name in trained_of(model) if "classifier" in name} == {"weight", "bias"}


def test_it_is_one_parameter_for_optimisers_and_one_module_for_copies(bert, make):
    model = random_model(bert, make)
    expected = logits(model, bert.inputs)
    assert len(list(model.parameters())) == len({id(p) for p in model.parameters()})
    copied = copy.deepcopy(model)
    holders = [module for module in copied.modules() if isinstance(module, SharedEntries)]
    assert len(holders) == 1
    holders[0].entries.data.zero_()
    assert torch.equal(logits(model, bert.inputs), expected)
    assert torch.equal(logits(copied, bert.inputs), logits(bert.build(), bert.inputs))


def test_casts_and_moves_reach_every_layer_once(bert, make):
    model = random_model(bert, make).to(torch.float64)
    assert {p.dtype for p in model.parameters()} == {torch.float64}
    assert all(layer.cores["default"].dtype == torch.float64 for layer in layers_of(model).values())
    (holder,) = (module for module in model.modules() if isinstance(module, SharedEntries))
    before = holder.entries.clone()
    model.half().float()
    assert torch.allclose(holder.entries, before.float(), atol=1e-3)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_and_autocast(bert, make, dtype):
    model = get_peft_model(bert.build(dtype=torch.bfloat16), make(**RANDOM)).eval()
    assert {p.dtype for p in trained_of(model).values()} == {torch.float32}
    assert logits(model, bert.inputs).dtype == torch.bfloat16
    kept = get_peft_model(bert.build(dtype=torch.bfloat16), make(**RANDOM), autocast_adapter_dtype=False)
    assert {p.dtype for p in trained_of(kept).values()} == {torch.bfloat16}
    assert logits(kept, bert.inputs).isfinite().all()
    wide = random_model(bert, make)
    expected = logits(wide, bert.inputs)
    with torch.autocast("cpu", dtype):
        assert relative(logits(wide, bert.inputs).float(), expected) < 0.1
        wide(**bert.inputs).logits.sum().backward()
    assert all(p.grad.isfinite().all() for p in trained_of(wide).values())


def test_an_offloaded_model_fetches_what_its_layers_share(bert, make):
    model = random_model(bert, make)
    expected = logits(model, bert.inputs)
    cpu_offload(model, execution_device=torch.device("cpu"))
    for _ in range(2):
        assert all(parameter.is_meta for parameter in model.parameters())
        torch.testing.assert_close(logits(model, bert.inputs), expected)


def test_dropout_acts_in_training_alone(mlp, make):
    model = get_peft_model(mlp(), make(target_modules=["0"], dropout=0.5, r=4, **RANDOM))
    x = torch.randn(5, 16)
    assert torch.equal(model.eval()(x), model(x))
    assert not torch.equal(model.train()(x), model(x))


def test_safe_merge_refuses_what_is_not_finite(bert, make):
    model = random_model(bert, make)
    weights = {name: layer.base_layer.weight.clone() for name, layer in layers_of(model).items()}
    next(iter(trained_of(model).values())).data[0] = torch.nan
    with pytest.raises(
        ValueError, match=r"NaNs detected in the merged weights\. The adapter default seems to be broken"
    ):
        model.merge_adapter(safe_merge=True)
    assert all(torch.equal(layer.base_layer.weight, weights[name]) for name, layer in layers_of(model).items())


def test_random_starts_differ(mlp, make):
    x = torch.randn(3, 16)
    first, second = (get_peft_model(mlp(), make(target_modules=["0"], r=2, **RANDOM))(x) for _ in range(2))
    assert not torch.allclose(first, second)


def test_it_learns(make):
    """Updates of a common structure are fitted; the base stays as it is."""

    class Layers(nn.Module):
        def __init__(self, seed=0):
            super().__init__()
            torch.manual_seed(seed)
            self.layers = nn.ModuleList(nn.ModuleDict({"a": nn.Linear(24, 24), "b": nn.Linear(24, 24)}) for _ in "12")

        def forward(self, x):
            for layer in self.layers:
                x = x + torch.tanh(layer["a"](x)) - torch.tanh(layer["b"](x))
            return x

    model = get_peft_model(Layers(), make(target_modules=["a", "b"], r=6))
    x = torch.randn(64, 24)
    with torch.no_grad():
        wanted = get_peft_model(Layers(), make(target_modules=["a", "b"], **RANDOM))(x)
    optimizer = torch.optim.AdamW([*trained_of(model).values()], lr=5e-3, weight_decay=0)
    losses = []
    for _ in range(60):
        loss = (model(x) - wanted).square().mean()
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses[-1] < 0.7 * losses[0], losses[::10]
