import copy

import pytest
import torch
from peft import get_peft_model
from peft.tuners.lora.conversion import convert_to_lora
from torch import nn
from transformers.pytorch_utils import Conv1D

from ttlora import LorettaRepConfig
from ttlora.tuners.loretta_rep import LorettaRepLinear

RANDOM = {"init_weights": False}
UPDATES_ALONE = {**RANDOM, "train_layer_norms": False}


def layers_of(model):
    return {name: module for name, module in model.named_modules() if isinstance(module, LorettaRepLinear)}


def logits(model, inputs, **kwargs):
    with torch.no_grad():
        return model(**inputs, **kwargs).logits


def relative(got, expected):
    return ((got - expected).norm() / expected.norm()).item()


def move_all(model):
    """As if all that trains had been trained."""
    with torch.no_grad():
        for p in model.parameters():
            if p.requires_grad:
                p += 0.1 * torch.randn_like(p)


@pytest.fixture
def bert(architectures):
    return architectures["bert"]


@pytest.fixture(params=["bert", "llama", "gpt2", "t5"])
def some(architectures, request):
    """Linear layers, grouped-query attention, transposed weights, and an encoder with a decoder."""
    return architectures[request.param]


class TestSomeArchitectures:
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    def test_a_zero_update_leaves_every_bit_of_the_logits(self, some, dtype):
        expected = logits(some.build(dtype=dtype), some.inputs)
        model = get_peft_model(some.build(dtype=dtype), LorettaRepConfig()).eval()
        assert len(layers_of(model)) == some.queries_and_values
        assert torch.equal(logits(model, some.inputs), expected)

    def test_cores_and_norms_train_and_all_of_them(self, some):
        model = get_peft_model(some.build(), LorettaRepConfig(**RANDOM))
        trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
        cores = [name for name in trained if name.endswith(".loretta_rep_cores.default")]
        norms = {name.partition(".modules_to_save.default")[0] for name in trained.keys() - set(cores)}
        assert len(cores) == some.queries_and_values
        expected = {name for name, m in some.build().named_modules() if "norm" in type(m).__name__.lower()}
        assert {name.removeprefix("base_model.model.") for name in norms} == expected
        model(**some.inputs).logits.square().sum().backward()
        assert all(p.grad.count_nonzero() > 0 for p in trained.values())

    def test_gradient_checkpointing_changes_no_gradient(self, some):
        def gradients(model):
            torch.manual_seed(0)  # for dropout
            model.train()(**some.inputs).logits.square().sum().backward()
            return [p.grad for p in model.parameters() if p.requires_grad]

        plain = get_peft_model(some.build(), LorettaRepConfig(**RANDOM))
        checkpointed = copy.deepcopy(plain)
        checkpointed.gradient_checkpointing_enable()
        for got, expected in zip(gradients(checkpointed), gradients(plain), strict=True):
            torch.testing.assert_close(got, expected)

    def test_merge_and_unload(self, some):
        model = get_peft_model(some.build(), LorettaRepConfig(**RANDOM)).eval()
        move_all(model)
        expected = logits(model, some.inputs)
        assert relative(logits(some.build(), some.inputs), expected) > 1e-2
        merged = model.merge_and_unload(safe_merge=True)
        assert type(merged) is some.kind
        assert merged.state_dict().keys() == some.build().state_dict().keys()
        assert relative(logits(merged, some.inputs), expected) < 1e-5

    def test_unload_gives_the_base_model_back(self, some):
        model = get_peft_model(some.build(), LorettaRepConfig(**RANDOM)).eval()
        move_all(model)
        assert torch.equal(logits(model.unload(), some.inputs), logits(some.build(), some.inputs))

    def test_lora_from_it(self, some):
        model = get_peft_model(some.build(), LorettaRepConfig(r=4, **UPDATES_ALONE)).eval()
        expected = logits(model, some.inputs)
        assert model.supports_lora_conversion()
        config, state = convert_to_lora(model, rank=4)
        assert relative(logits(some.build(), some.inputs), expected) > 1e-3
        lora = get_peft_model(some.build(), config)
        lora.load_state_dict({f"base_model.model.{k}": v for k, v in _with_name(state).items()}, strict=False)
        assert relative(logits(lora.eval(), some.inputs), expected) < 1e-4


def _with_name(state):
    bare = {key.removeprefix("base_model.model."): tensor for key, tensor in state.items()}
    return {key.replace(".weight", ".default.weight"): tensor for key, tensor in bare.items()}


class TestSeveralAdapters:
    @pytest.fixture
    def model(self, bert):
        model = get_peft_model(bert.build(), LorettaRepConfig(**RANDOM), adapter_name="first")
        # another inner size, TT-rank and scale on the same weights, and weights of its own
        model.add_adapter("second", LorettaRepConfig(r=3, tt_rank=2, alpha=1, **RANDOM))
        model.add_adapter("third", LorettaRepConfig(target_modules=["key"], **UPDATES_ALONE))
        for name in ("first", "second"):
            model.set_adapter(name)
            move_all(model)
        model.set_adapter("first")
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
        assert all(f".{name}" in n for n, p in model.named_parameters() if p.requires_grad)

    def test_a_mixed_batch(self, bert, model):
        names = ["second", "__base__", "first"]
        mixed = logits(model, bert.inputs, adapter_names=names)
        base = logits(bert.build(), bert.inputs)
        for row, name in enumerate(names):
            expected = base if name == "__base__" else self.alone(bert, model, name)
            torch.testing.assert_close(mixed[row], expected[row])

    def test_a_mixed_batch_of_adapters_of_one_shape(self, bert):
        model = get_peft_model(bert.build(), LorettaRepConfig(**UPDATES_ALONE), adapter_name="one").eval()
        for name in ("two", "three"):
            model.add_adapter(name, LorettaRepConfig(**UPDATES_ALONE))
        names = ["three", "one", "two"]
        mixed = logits(model, bert.inputs, adapter_names=names)
        for row, name in enumerate(names):
            model.set_adapter(name)
            torch.testing.assert_close(mixed[row], logits(model, bert.inputs)[row])
        assert relative(mixed[:2], mixed[1:]) > 1e-3

    def test_updates_alone_add_up(self, bert):
        model = get_peft_model(bert.build(), LorettaRepConfig(**UPDATES_ALONE), adapter_name="one").eval()
        model.add_adapter("two", LorettaRepConfig(r=3, **UPDATES_ALONE))
        model.base_model.set_adapter(["one", "two"])
        together = logits(model, bert.inputs)
        merged = model.merge_and_unload(adapter_names=["one", "two"])
        torch.testing.assert_close(logits(merged, bert.inputs), together)

    def test_norms_of_two_adapters_cannot_be_merged_into_one_model(self, model):
        with pytest.raises(ValueError, match=r"the adapters first, second cannot be merged .* merge one of them"):
            model.merge_and_unload(adapter_names=["first", "second"])

    def test_disable(self, bert, model):
        first = logits(model, bert.inputs)
        with model.disable_adapter():
            assert torch.equal(logits(model, bert.inputs), logits(bert.build(), bert.inputs))
        assert torch.equal(logits(model, bert.inputs), first)

    def test_merge_and_unmerge_in_place(self, bert, model):
        expected = logits(model, bert.inputs)
        model.merge_adapter()
        torch.testing.assert_close(logits(model, bert.inputs), expected)
        model.unmerge_adapter()
        torch.testing.assert_close(logits(model, bert.inputs), expected)

    def test_delete(self, bert, model):
        expected = self.alone(bert, model, "second")
        model.set_adapter("second")
        model.delete_adapter("first")
        torch.testing.assert_close(logits(model, bert.inputs), expected)
        assert not any(".first" in name for name in model.state_dict())
        assert all("first" not in layer.loretta_rep_update for layer in layers_of(model).values())


class TestTargets:
    def test_all_linear_leaves_the_head_alone(self, bert):
        config = LorettaRepConfig(target_modules="all-linear", task_type="SEQ_CLS", r=2)
        model = get_peft_model(bert.build(), config)
        linear = {
            name for name, module in model.named_modules()
            if isinstance(module, nn.Linear | Conv1D) and not name.endswith(".base_layer")
        }  # fmt: skip
        assert all("classifier" in name for name in linear)
        model.add_adapter("other", LorettaRepConfig(target_modules="all-linear", task_type="SEQ_CLS", r=2))
        assert all(set(layer.loretta_rep_cores) == {"default", "other"} for layer in layers_of(model).values())

    @pytest.mark.parametrize(
        ("config", "error", "message"),
        [
            ({"target_modules": ["nothing"]}, ValueError, "nothing"),
            ({"target_modules": ["word_embeddings"]}, TypeError, "word_embeddings is not supported: Embedding is nei"),
            ({"shape": {"24": [23, 24]}}, ValueError, r"query: shape \[23, 24\] has the product 552"),
            (
                {"shape": {"24": [4, 6, 8], "42": [6, 7, 8]}},
                ValueError,
                "dims for 42 rows, but the factors have 24: name",
            ),
            ({"r": 25}, ValueError, "query: r=25 is more than the rank of its 24 x 24 weight"),
        ],
    )
    def test_what_cannot_be_adapted(self, bert, config, error, message):
        with pytest.raises(error, match=message):
            get_peft_model(bert.build(), LorettaRepConfig(**config))

    def test_a_config_serves_for_models_of_other_sizes(self):
        config = LorettaRepConfig(target_modules=["0"], r=4)
        for inputs, shapes in ((24, {"24"}), (8, {"8", "24"})):
            adapted = get_peft_model(nn.Sequential(nn.Linear(inputs, 24)), config)
            assert adapted.peft_config["default"].shape.keys() == shapes
        assert (config.shape, config.weight_sizes) == ("auto", {})


def test_a_copy_is_independent(bert):
    model = get_peft_model(bert.build(), LorettaRepConfig(**RANDOM)).eval()
    expected = logits(model, bert.inputs)
    copied = copy.deepcopy(model)
    for layer in layers_of(copied).values():
        layer.loretta_rep_cores["default"].data.zero_()
    assert torch.equal(logits(model, bert.inputs), expected)
    assert "loretta_rep.LorettaRepLinear" in repr(model)


def test_dropout_acts_in_training_alone(mlp):
    model = get_peft_model(mlp(), LorettaRepConfig(target_modules=["0"], dropout=0.5, r=4, **RANDOM))
    x = torch.randn(5, 16)
    assert torch.equal(model.eval()(x), model(x))
    assert not torch.equal(model.train()(x), model(x))


def test_it_learns(mlp):
    """The update fits a matrix of low rank; the base stays as it is."""
    model = get_peft_model(mlp(), LorettaRepConfig(target_modules=["0"], r=4, tt_rank=4))
    target = get_peft_model(mlp(seed=1), LorettaRepConfig(target_modules=["0"], r=4))
    x = torch.randn(64, 16)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2, weight_decay=0)
    losses = []
    for _ in range(150):
        loss = (model(x) - target(x).detach()).square().mean()
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses[-1] < 0.6 * losses[0]
