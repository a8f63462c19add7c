import copy
import json

import pytest
import torch
import transformers as tf
from peft import PeftModel, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from torch import nn
from torch.nn import functional as F

from ttlora import BottleneckConfig
from ttlora.tensor_train import TTShape
from ttlora.tensor_train import shape as shape_module
from ttlora.tuners.bottleneck import BottleneckLinear, default_targets
from ttlora.tuners.norms import TrainedNorm

DENSE = {"r": 4}
TRAINS = {"r": 8, "tt_rank": 2}
# outputs of such small models are small
STRONG = {"init_weights": False, "scale": 3.0}
# the last parts of the names of the default targets, and how many there are
PLACES = {
    "bert": ({"output.dense"}, 4),
    "roberta": ({"output.dense"}, 4),
    "deberta": ({"output.dense"}, 4),
    "deberta-v2": ({"output.dense"}, 4),
    "mpnet": ({"attn.o", "output.dense"}, 4),
    "distilbert": ({"attention.out_lin", "ffn.lin2"}, 4),
    "modernbert": ({"attn.Wo", "mlp.Wo"}, 4),
    "llama": ({"self_attn.o_proj", "mlp.down_proj"}, 4),
    "gpt2": ({"attn.c_proj", "mlp.c_proj"}, 4),
    "t5": ({"SelfAttention.o", "EncDecAttention.o", "DenseReluDense.wo"}, 10),
}


def layers_of(model):
    return {name: module for name, module in model.named_modules() if isinstance(module, BottleneckLinear)}


def trained(model):
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def logits(model, inputs, **kwargs):
    with torch.no_grad():
        return model.eval()(**inputs, **kwargs).logits


def adapt(architecture, name="default", dtype=torch.float32, **config):
    """A model with an adapter that changes it, norms included."""
    config = BottleneckConfig(**{**TRAINS, **STRONG, **config})
    return shaken(get_peft_model(architecture.build(dtype=dtype), config, adapter_name=name), name)


def shaken(model, name):
    for key, p in model.named_parameters():
        if f"modules_to_save.{name}." in key:
            p.data += 0.3 * torch.randn_like(p)
    return model.eval()


class TestEveryArchitecture:
    @pytest.mark.parametrize("config", [DENSE, TRAINS])
    def test_the_start_leaves_every_bit_of_the_logits(self, architecture, config):
        expected = logits(architecture.build(), architecture.inputs)
        model = get_peft_model(architecture.build(), BottleneckConfig(**config)).eval()
        assert torch.equal(logits(model, architecture.inputs), expected)

    def test_where_the_adapters_stand_and_that_nothing_else_but_norms_trains(self, architecture):
        model = get_peft_model(architecture.build(), BottleneckConfig(**DENSE, init_weights=False))
        endings, count = PLACES[architecture.config.model_type]
        names = list(layers_of(model))
        assert len(names) == count
        assert {".".join(name.split(".")[-2:]) for name in names} == endings
        norms = [module for module in model.modules() if isinstance(module, TrainedNorm)]
        plain = [m for m in architecture.build().modules() if type(m).__name__.endswith(("LayerNorm", "RMSNorm"))]
        assert len(norms) == len(plain) > 0
        adapters = {name for name in trained(model) if ".bottleneck_" in name}
        assert len(adapters) == 4 * count
        others = set(trained(model)) - adapters
        assert len(others) == sum(len(list(norm.parameters())) for norm in plain)
        assert all(".modules_to_save.default." in name for name in others)

        model(**architecture.inputs).logits.square().sum().backward()
        assert all(p.grad is None for name, p in model.named_parameters() if name not in trained(model))
        # the first layer of ModernBERT and T5's relative attention leave out nothing that trains
        assert all(p.grad is not None and p.grad.count_nonzero() > 0 for p in trained(model).values())

    @pytest.mark.parametrize("config", [DENSE, TRAINS])
    def test_a_random_start_changes_the_model(self, architecture, config):
        base = logits(architecture.build(), architecture.inputs)
        config = BottleneckConfig(**config, **STRONG, train_layer_norms=False)
        model = get_peft_model(architecture.build(), config)
        got = logits(model, architecture.inputs)
        assert (got - base).norm() > 1e-2 * base.norm()
        with model.disable_adapter():
            assert torch.equal(logits(model, architecture.inputs), base)

    def test_save_and_load(self, architecture, tmp_path):
        model = adapt(architecture)
        expected = logits(model, architecture.inputs)
        assert not torch.allclose(logits(architecture.build(), architecture.inputs), expected, atol=1e-3)
        model.save_pretrained(tmp_path)
        loaded = PeftModel.from_pretrained(architecture.build(), tmp_path)
        assert torch.equal(logits(loaded, architecture.inputs), expected)
        assert not trained(loaded)
        again = PeftModel.from_pretrained(architecture.build(), tmp_path, is_trainable=True, low_cpu_mem_usage=True)
        assert torch.equal(logits(again, architecture.inputs), expected)
        assert set(trained(again)) == set(trained(model))

    def test_rows_of_a_mixed_batch_get_their_own(self, architecture):
        model = adapt(architecture, "first")
        model.add_adapter("second", BottleneckConfig(**DENSE, **STRONG))
        shaken(model, "second")
        names = ["second", "__base__", "first"]
        expected = []
        for row, name in enumerate(names):
            one = {key: value[row : row + 1] for key, value in architecture.inputs.items()}
            model.set_adapter("first" if name == "__base__" else name)
            with model.disable_adapter() if name == "__base__" else torch.no_grad():
                expected.append(logits(model, one))
        got = logits(model, architecture.inputs, adapter_names=names)
        torch.testing.assert_close(got, torch.cat(expected), rtol=1e-4, atol=1e-5)
        assert not torch.allclose(got, logits(model, architecture.inputs), atol=1e-3)
        assert not any(layer._forward_pre_hooks for layer in model.modules())

    def test_unload_gives_the_base_model_back(self, architecture):
        expected = logits(architecture.build(), architecture.inputs)
        base = adapt(architecture).unload()
        assert type(base) is architecture.kind
        assert not layers_of(base)
        assert torch.equal(logits(base, architecture.inputs), expected)

    def test_gradient_checkpointing_changes_no_gradient(self, architecture):
        if not architecture.kind.supports_gradient_checkpointing:
            pytest.skip("not supported by the model")

        def gradients(model):
            torch.manual_seed(0)  # for dropout
            model.train()(**architecture.inputs).logits.square().sum().backward()
            return [p.grad for p in trained(model).values()]

        plain = adapt(architecture)
        checkpointed = copy.deepcopy(plain)
        checkpointed.gradient_checkpointing_enable()
        for got, expected in zip(gradients(checkpointed), gradients(plain), strict=True):
            torch.testing.assert_close(got, expected)


class TestTargets:
    def test_lorettas_place_in_llama_is_behind_the_feed_forward(self, architectures):
        model = get_peft_model(architectures["llama"].build(), BottleneckConfig(**TRAINS))
        assert {name.rpartition(".")[2] for name in layers_of(model)} == {"down_proj"}
        assert default_targets("llama", tensorised=True) == ["down_proj"]
        assert default_targets("bert", tensorised=True) == ["output.dense"]
        assert default_targets("squeezebert", tensorised=False) is None

    def test_albert(self):
        config = tf.AlbertConfig(
            vocab_size=64, embedding_size=12, hidden_size=24, num_hidden_layers=2, num_attention_heads=4,
            intermediate_size=40, max_position_embeddings=32,
        )  # fmt: skip
        model = get_peft_model(tf.AlbertForSequenceClassification(config), BottleneckConfig(**DENSE))
        assert {name.rpartition(".")[2] for name in layers_of(model)} == {"dense", "ffn_output"}

    @pytest.mark.parametrize("kind", ["roberta", "mpnet", "deberta", "modernbert", "distilbert"])
    def test_no_head_is_hit(self, architectures, kind):
        model = get_peft_model(architectures[kind].build(), BottleneckConfig(**DENSE))
        assert all("layer" in name for name in layers_of(model))

    def test_layers_and_modules_may_be_chosen(self, architectures):
        config = BottleneckConfig(**DENSE, layers_to_transform=[1], exclude_modules=["attention.output.dense"])
        names = list(layers_of(get_peft_model(architectures["bert"].build(), config)))
        assert [name.partition("layer.")[2] for name in names] == ["1.output.dense"]

    def test_all_linear_finds_the_same_layers_again(self, architectures):
        bert = architectures["bert"]
        config = BottleneckConfig(**DENSE, target_modules="all-linear", task_type="SEQ_CLS")
        model = get_peft_model(bert.build(), config)
        assert len(layers_of(model)) == 2 * 6 + 1
        model.add_adapter("other", copy.copy(config))
        assert all(set(layer.bottleneck_up) == {"default", "other"} for layer in layers_of(model).values())

    @pytest.mark.parametrize(
        ("config", "error", "message"),
        [
            ({"target_modules": ["nothing"]}, ValueError, "nothing"),
            ({"target_modules": ["LayerNorm"]}, TypeError, "LayerNorm is not supported: LayerNorm is neither"),
            ({"r": 97}, ValueError, "attention.output.dense: r=97"),
            ({"tt_rank": 2, "shape": [5, 5]}, ValueError, r"attention.output.dense: shape \[5, 5\]"),
        ],
    )
    def test_what_cannot_be_adapted(self, architectures, config, error, message):
        with pytest.raises(error, match=message):
            get_peft_model(architectures["bert"].build(), BottleneckConfig(**{**DENSE, **config}))

    def test_a_model_type_without_defaults_asks_for_targets(self, mlp):
        with pytest.raises(ValueError, match=r"no default targets .* set target_modules"):
            get_peft_model(mlp(), BottleneckConfig())


class TestSeveralAdapters:
    @pytest.fixture
    def bert(self, architectures):
        return architectures["bert"]

    @pytest.fixture
    def model(self, bert):
        model = adapt(bert, "first", modules_to_save=["classifier"])
        model.add_adapter("second", BottleneckConfig(**DENSE, **STRONG))
        model.add_adapter("third", BottleneckConfig(**TRAINS, **STRONG, train_layer_norms=False))
        for name in ("second", "third"):
            shaken(model, name)
        return model

    def test_each_is_what_it_is_alone(self, bert, model, tmp_path):
        outputs = []
        for name in ("first", "second", "third"):
            model.set_adapter(name)
            assert all(f".{name}" in key for key in trained(model))
            outputs.append(logits(model, bert.inputs))
            model.save_pretrained(tmp_path, selected_adapters=[name])
            alone = PeftModel.from_pretrained(bert.build(), tmp_path / name)
            assert torch.equal(logits(alone, bert.inputs), outputs[-1])
        assert not torch.allclose(outputs[0], outputs[1], atol=1e-3)
        assert not torch.allclose(outputs[1], outputs[2], atol=1e-3)

    def test_disable(self, bert, model):
        base, expected = logits(bert.build(), bert.inputs), logits(model, bert.inputs)
        with model.disable_adapter():
            assert torch.equal(logits(model, bert.inputs), base)
            assert torch.equal(logits(model, bert.inputs, adapter_names=["first", "second", "third"]), base)
        assert torch.equal(logits(model, bert.inputs), expected)
        # without PEFT's switch, which takes the names away
        model.base_model.disable_adapter_layers()
        assert torch.equal(logits(model, bert.inputs, adapter_names=["first", "second", "third"]), base)
        model.base_model.enable_adapter_layers()
        assert torch.equal(logits(model, bert.inputs), expected)

    def test_delete(self, bert, model):
        expected = logits(model, bert.inputs)
        model.delete_adapter("second")
        assert not any("second" in key for key in model.state_dict())
        for layer in layers_of(model).values():
            by_adapter = [name for name in (*vars(layer), *layer._modules) if name.startswith("bottleneck_")]
            assert len(by_adapter) == 4
            assert all("second" not in getattr(layer, name) for name in by_adapter)
        assert torch.equal(logits(model, bert.inputs), expected)
        with pytest.warns(UserWarning, match="is now deleted"):
            model.delete_adapter("first")
        assert "first" not in model.peft_config
        assert torch.isfinite(logits(model, bert.inputs)).all()

    def test_training_one_leaves_the_others(self, bert, model):
        before = {name: value.clone() for name, value in model.state_dict().items()}
        model.set_adapter("second")
        optimizer = torch.optim.AdamW(trained(model).values(), lr=1e-2)
        model(**bert.inputs).logits.sum().backward()
        optimizer.step()
        changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
        assert changed
        assert all(".second" in name for name in changed)
        assert any("LayerNorm" in name for name in changed)

    def test_several_at_once_add_up_where_no_norms_train(self, bert):
        options = {**STRONG, "train_layer_norms": False}
        model = get_peft_model(bert.build(), BottleneckConfig(**TRAINS, **options), adapter_name="first")
        model.add_adapter("second", BottleneckConfig(**DENSE, **options))
        one = logits(model, bert.inputs)
        model.base_model.set_adapter(["first", "second"])
        both = logits(model, bert.inputs)
        assert not torch.allclose(both, one, atol=1e-3)
        assert {name.split(".")[-2] for name in trained(model)} == {"first", "second"}

    @pytest.mark.parametrize(
        ("names", "message"),
        [
            (["first", "second", "fourth"], "non-existing adapter\\(s\\): fourth"),
            (["first", "second"], "2 rows meets a norm over 3 rows|should be the same as the number of inputs"),
        ],
    )
    def test_wrong_names(self, bert, model, names, message):
        with pytest.raises(ValueError, match=message):
            model(**bert.inputs, adapter_names=names)
        assert not any(module._forward_pre_hooks for module in model.modules())

    def test_no_mixed_batch_in_training(self, bert, model):
        with pytest.raises(ValueError, match="training mode"):
            model.train()(**bert.inputs, adapter_names=["first", "second", "third"])

    def test_state_dicts(self, bert):
        models = [adapt(bert), adapt(bert)]
        set_peft_model_state_dict(models[1], get_peft_model_state_dict(models[0]))
        assert torch.equal(logits(models[1], bert.inputs), logits(models[0], bert.inputs))


class TestWhatTheFileSays:
    @pytest.fixture
    def saved(self, mlp, tmp_path):
        config = BottleneckConfig(**TRAINS, **STRONG, target_modules=["0", "2"])
        get_peft_model(mlp(), config).save_pretrained(tmp_path)
        return tmp_path

    def edit(self, folder, **changes):
        path = folder / "adapter_config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))

    def test_a_later_choice_of_auto_changes_no_saved_adapter(self, saved, mlp, monkeypatch):
        expected = PeftModel.from_pretrained(mlp(), saved)(torch.ones(1, 16))
        build = TTShape.build

        def choose_otherwise(out_features, in_features, dims="auto", r=5):
            return build(out_features, in_features, [out_features, in_features] if dims == "auto" else dims, r)

        monkeypatch.setattr(shape_module.TTShape, "build", choose_otherwise)
        assert torch.equal(PeftModel.from_pretrained(mlp(), saved)(torch.ones(1, 16)), expected)

    def test_a_model_of_other_sizes(self, saved):
        other = nn.Sequential(nn.Linear(16, 48), nn.ReLU(), nn.Linear(48, 8))
        with pytest.raises(ValueError, match="0 has 48 outputs, but shape has dims for 24, 8 alone"):
            PeftModel.from_pretrained(other, saved)

    @pytest.mark.parametrize(
        ("wrong", "message"),
        [
            ({"r": 10**12}, "r=1000000000000"),
            ({"r": 2**30}, "0: r=1073741824 is more than 4 times its 24 outputs"),
            (
                {"shape": {"24": [24, *[1] * 200, 8], "8": "auto"}, "tt_rank": 2**30},
                "0: shape .* takes 13,056 parameters",
            ),
            ({"tt_rank": "5"}, "tt_rank='5'"),
            ({"non_linearity": "__import__"}, "non_linearity='__import__'"),
        ],
    )
    def test_a_config_of_nonsense(self, saved, mlp, wrong, message):
        self.edit(saved, **wrong)
        with pytest.raises(ValueError, match=message):
            PeftModel.from_pretrained(mlp(), saved)


@pytest.mark.parametrize("beams", [1, 3])
def test_generation_with_beams_from_a_mixed_batch(architectures, beams):
    t5 = architectures["t5"]
    model = adapt(t5, "first", scale=30.0)
    model.add_adapter("second", BottleneckConfig(**DENSE, init_weights=False, scale=30.0))
    shaken(model, "second")
    names = ["second", "__base__", "first"]
    inputs = {key: value for key, value in t5.inputs.items() if key != "decoder_input_ids"}
    options = {"num_beams": beams, "max_new_tokens": 5, "min_new_tokens": 5, "do_sample": False}
    got = model.generate(**inputs, **options, adapter_names=names)
    for row, name in enumerate(names):
        one = {key: value[row : row + 1] for key, value in inputs.items()}
        model.set_adapter("first" if name == "__base__" else name)
        with model.disable_adapter() if name == "__base__" else torch.no_grad():
            assert torch.equal(model.generate(**one, **options), got[row : row + 1])


@pytest.mark.parametrize("merge", [lambda m: m.merge_and_unload(), lambda m: m.merge_adapter()])
def test_merging_is_refused_in_one_line(architectures, merge):
    bert = architectures["bert"]
    model = adapt(bert)
    expected = logits(model, bert.inputs)
    with pytest.raises(ValueError, match=r"cannot be merged.*unload\(\)") as error:
        merge(model)
    assert "\n" not in str(error.value)
    assert torch.equal(logits(model, bert.inputs), expected)
    assert not model.supports_lora_conversion()


def test_the_head_trains_and_is_saved(architectures, tmp_path):
    bert = architectures["bert"]
    model = adapt(bert, task_type="SEQ_CLS")
    heads = {name for name in trained(model) if "classifier" in name}
    assert heads == {f"base_model.model.classifier.modules_to_save.default.{part}" for part in ("weight", "bias")}
    expected = logits(model, bert.inputs)
    model.save_pretrained(tmp_path)
    assert torch.equal(logits(PeftModel.from_pretrained(bert.build(), tmp_path), bert.inputs), expected)


def test_transformers_own_adapters(architectures, tmp_path):
    llama = architectures["llama"]
    llama.build().save_pretrained(tmp_path / "base")
    model = tf.AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    model.add_adapter(BottleneckConfig(**TRAINS, **STRONG), adapter_name="one")
    one = logits(shaken(model, "one"), llama.inputs)
    model.add_adapter(BottleneckConfig(**DENSE, **STRONG), adapter_name="two")
    two = logits(shaken(model, "two"), llama.inputs)
    model.set_adapter("one")
    assert torch.equal(logits(model, llama.inputs), one)
    model.delete_adapter("one")
    model.set_adapter("two")
    assert torch.equal(logits(model, llama.inputs), two)
    model.save_pretrained(tmp_path / "two")
    loaded = tf.AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    loaded.load_adapter(tmp_path / "two")
    assert torch.equal(logits(loaded, llama.inputs), two)


def test_transformers_own_switch(architectures):
    llama = architectures["llama"]
    model = llama.build()
    base = logits(model, llama.inputs)
    model.add_adapter(BottleneckConfig(**TRAINS, **STRONG, train_layer_norms=False))
    adapted = logits(model, llama.inputs)
    model.disable_adapters()
    assert torch.equal(logits(model, llama.inputs), base)
    model.enable_adapters()
    assert torch.equal(logits(model, llama.inputs), adapted)


def test_a_model_on_the_meta_device(architecture):
    with torch.device("meta"):
        base = architecture.kind(architecture.config)
    model = get_peft_model(base, BottleneckConfig(**TRAINS))
    assert layers_of(model)
    assert all(p.is_meta for p in model.parameters())


@pytest.mark.parametrize("config", [DENSE, TRAINS])
def test_training_moves_towards_a_target(mlp, config):
    torch.manual_seed(1)
    x = torch.randn(64, 16)
    target = mlp(seed=3)(x).detach()
    model = get_peft_model(mlp(), BottleneckConfig(**config, target_modules=["0", "2"]))
    optimizer = torch.optim.AdamW(trained(model).values(), lr=3e-3)
    losses = []
    for _ in range(150):
        optimizer.zero_grad()
        loss = F.mse_loss(model(x), target)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


@pytest.mark.skipif(
    tuple(map(int, torch.__version__.split(".")[:2])) <= (2, 10),
    reason="torch up to 2.10 cannot trace a frozen dataclass with computed fields",
)
@pytest.mark.usefixtures("unchecked_shapes")
def test_one_graph_for_the_compiler(mlp):
    model = get_peft_model(
        nn.Sequential(*mlp(), nn.LayerNorm(8)), BottleneckConfig(**TRAINS, target_modules=["0", "2"])
    )
    assert isinstance(model.base_model.model[3], TrainedNorm)
    x = torch.randn(4, 16)
    expected = model(x)
    try:
        compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
        torch.testing.assert_close(compiled(x), expected)
        compiled(x).square().sum().backward()
    finally:
        torch._dynamo.reset()
    assert all(p.grad is not None for p in trained(model).values())
