import copy
import pickle

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from peft.tuners.lora.conversion import convert_to_lora
from torch import nn
from torch.nn import functional as F
from transformers.pytorch_utils import Conv1D

from ttlora import TTLoraConfig
from ttlora.tuners.targets import default_places
from ttlora.tuners.tt_lora import TTLoraLayer

RANDOM = {"init_weights": False}


def layers_of(model):
    return {name: module for name, module in model.named_modules() if isinstance(module, TTLoraLayer)}


def logits(model, inputs, **kwargs):
    with torch.no_grad():
        return model(**inputs, **kwargs).logits


def relative(got, expected):
    return ((got - expected).norm() / expected.norm()).item()


class TestEveryArchitecture:
    def test_default_targets_and_their_sizes(self, architecture):
        layers = layers_of(get_peft_model(architecture.build(), TTLoraConfig()))
        assert len(layers) == architecture.count
        sizes = {}
        for name, layer in layers.items():
            sizes.setdefault(name.rpartition(".")[2], set()).add((layer.out_features, layer.in_features))
        assert sizes == architecture.targets

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    def test_a_zero_update_leaves_every_bit_of_the_logits(self, architecture, dtype):
        expected = logits(architecture.build(dtype=dtype), architecture.inputs)
        model = get_peft_model(architecture.build(dtype=dtype), TTLoraConfig()).eval()
        assert torch.equal(logits(model, architecture.inputs), expected)
        assert torch.equal(model(**architecture.inputs).logits, expected)  # with the graph that training needs

    def test_only_the_cores_train_and_all_of_them(self, architecture):
        model = get_peft_model(architecture.build(), TTLoraConfig(**RANDOM))
        trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
        assert len(trained) == architecture.count
        assert all(name.endswith(".ttlora_cores.default") for name in trained)
        shapes = [layer.ttlora_update["default"].shape for layer in layers_of(model).values()]
        assert sum(p.numel() for p in trained.values()) == sum(shape.parameters for shape in shapes)
        model(**architecture.inputs).logits.square().sum().backward()
        assert all(p.grad.count_nonzero() > 0 for p in trained.values())
        assert all(p.grad is None for p in model.parameters() if not p.requires_grad)

    def test_merge_and_unload(self, architecture):
        base = logits(architecture.build(), architecture.inputs)
        model = get_peft_model(architecture.build(), TTLoraConfig(**RANDOM)).eval()
        expected = logits(model, architecture.inputs)
        assert relative(base, expected) > 1e-3
        merged = model.merge_and_unload(safe_merge=True)
        assert type(merged) is architecture.kind
        assert not layers_of(merged)
        assert relative(logits(merged, architecture.inputs), expected) < 1e-5

    def test_unload_gives_the_base_model_back(self, architecture):
        expected = logits(architecture.build(), architecture.inputs)
        model = get_peft_model(architecture.build(), TTLoraConfig(**RANDOM)).eval()
        assert torch.equal(logits(model.unload(), architecture.inputs), expected)

    def test_all_linear_leaves_the_head_alone(self, architecture):
        is_classifier = "Classification" in architecture.kind.__name__
        # of DistilBERT's two head layers PEFT leaves one out and then saves both, which no method allows
        task = "SEQ_CLS" if is_classifier and architecture.config.model_type != "distilbert" else None
        model = get_peft_model(
            architecture.build(), TTLoraConfig(target_modules="all-linear", task_type=task, **RANDOM)
        )
        layers = layers_of(model)
        prefix = "base_model.model."
        assert {f"{prefix}{path}" for path in default_places(architecture.build())} <= layers.keys()
        assert len(layers) > architecture.queries_and_values
        heads = ("score", "classifier", "lm_head")
        linear = {
            name for name, module in model.named_modules()
            if isinstance(module, nn.Linear | Conv1D) and not name.endswith(".base_layer")
        }  # fmt: skip
        assert all(any(head in name for head in heads) for name in linear)
        # a further adapter finds the same layers, though they are no longer plain ones
        model.add_adapter("other", TTLoraConfig(target_modules="all-linear", task_type=task, r=2))
        assert all(set(layer.ttlora_cores) == {"default", "other"} for layer in layers_of(model).values())
        model(**architecture.inputs).logits.sum().backward()

    def test_gradient_checkpointing_changes_no_gradient(self, architecture):
        if not architecture.kind.supports_gradient_checkpointing:
            pytest.skip("not supported by the model")

        def gradients(model):
            torch.manual_seed(0)  # for dropout
            model.train()(**architecture.inputs).logits.square().sum().backward()
            return [p.grad for p in model.parameters() if p.requires_grad]

        # of a random update as large as the weights rounding would be seen
        plain = get_peft_model(architecture.build(), TTLoraConfig(alpha=2, **RANDOM))
        checkpointed = copy.deepcopy(plain)
        checkpointed.gradient_checkpointing_enable()
        for got, expected in zip(gradients(checkpointed), gradients(plain), strict=True):
            torch.testing.assert_close(got, expected)

    def test_copies_are_independent(self, architecture):
        model = get_peft_model(architecture.build(), TTLoraConfig(**RANDOM)).eval()
        expected = logits(model, architecture.inputs)
        for copied in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
            assert torch.equal(logits(copied, architecture.inputs), expected)
            for layer in layers_of(copied).values():
                layer.ttlora_cores["default"].data.zero_()
            assert torch.equal(logits(model, architecture.inputs), expected)


class TestTargets:
    @pytest.fixture
    def names(self, architectures):
        """Builds a model and gives the adapted layers, without what all names share."""

        def adapt(kind="bert", **config):
            model = get_peft_model(architectures[kind].build(), TTLoraConfig(**config))
            return [name.removeprefix("base_model.model.").removeprefix("bert.encoder.") for name in layers_of(model)]

        return adapt

    def test_names(self, names):
        assert names(target_modules=["query", "layer.1.attention.self.key"]) == [
            "layer.0.attention.self.query",
            "layer.1.attention.self.query",
            "layer.1.attention.self.key",
        ]

    def test_a_regular_expression(self, names):
        assert names(target_modules=r".*\.1\..*(query|key)") == [
            "layer.1.attention.self.query",
            "layer.1.attention.self.key",
        ]

    def test_modules_that_are_left_out(self, names):
        left = names(target_modules=["query", "value"], exclude_modules=["query"])
        assert left == ["layer.0.attention.self.value", "layer.1.attention.self.value"]

    @pytest.mark.parametrize(
        "config",
        [
            {"layers_to_transform": 1},
            {"layers_to_transform": [1], "layers_pattern": "layer"},
            {"exclude_modules": r".*(\.0\.|pooler).*"},
        ],
    )
    def test_the_default_is_narrowed_as_names_are(self, names, config):
        inside = ["attention.self.value", "attention.output.dense", "intermediate.dense", "output.dense"]
        assert names(**config) == [f"layer.1.{name}" for name in inside]

    def test_the_default_has_no_such_layer(self, architectures):
        with pytest.raises(ValueError, match="layers_to_transform has 7, but no layer of that index has a target"):
            get_peft_model(architectures["bert"].build(), TTLoraConfig(layers_to_transform=[1, 7]))

    @pytest.mark.parametrize("layers", [1, [1]])
    def test_layers_to_transform(self, names, layers):
        expected = ["layer.1.attention.self.query", "layer.1.attention.self.value"]
        targets = ["query", "value"]
        assert names(target_modules=targets, layers_to_transform=layers) == expected
        assert names(target_modules=targets, layers_to_transform=layers, layers_pattern="layer") == expected

    def test_the_first_layer(self, names):
        found = names(target_modules=["query"], layers_to_transform=0, layers_pattern="layer")
        assert found == ["layer.0.attention.self.query"]

    @pytest.mark.parametrize(
        ("config", "error", "message"),
        [
            ({"target_modules": ["nothing"]}, ValueError, "nothing"),
            (
                {"target_modules": ["query"], "layers_to_transform": [7]},
                ValueError,
                "layers_to_transform has 7, but no layer of that index has a target module",
            ),
            ({"target_modules": ["LayerNorm"]}, TypeError, "LayerNorm is not supported: LayerNorm is none"),
            (
                {"target_modules": ["query"], "shape": [23, 24]},
                ValueError,
                r"query: shape \[23, 24\] has the product 552.*24 x 24.*576",
            ),
            (
                {"target_modules": ["query"], "shape": [24, 24], "r": [3, 3]},
                ValueError,
                r"query: r=\[3, 3\] has 2 ranks",
            ),
        ],
    )
    def test_what_cannot_be_adapted(self, architectures, config, error, message):
        with pytest.raises(error, match=message):
            get_peft_model(architectures["bert"].build(), TTLoraConfig(**config))

    def test_a_model_type_without_defaults_asks_for_targets(self, mlp):
        with pytest.raises(ValueError, match="target_modules"):
            get_peft_model(mlp(), TTLoraConfig())

    def test_patterns_reach_the_layers(self, architectures):
        config = TTLoraConfig(
            target_modules=["query", "value"],
            r=3,
            alpha=2,
            rank_pattern={"layer.1.attention.self.query": 2, "value": 1},
            alpha_pattern={"value": 7},
            shape_pattern={r".*\.0\..*query": [2, 12, 8, 3], "value": [24, 24]},
        )
        layers = list(layers_of(get_peft_model(architectures["bert"].build(), config)).values())
        shapes = [layer.ttlora_update["default"].shape for layer in layers]
        assert [max(shape.ranks) for shape in shapes] == [3, 1, 2, 1]
        assert [layer.ttlora_update["default"].scale for layer in layers] == [2, 7, 2, 7]
        assert shapes[0].dims == (2, 12, 8, 3)
        assert shapes[1].dims == shapes[3].dims == (24, 24)


class TestSeveralAdapters:
    @pytest.fixture
    def bert(self, architectures):
        return architectures["bert"]

    @pytest.fixture
    def model(self, bert):
        targets = {"target_modules": ["query", "value"]}
        model = get_peft_model(bert.build(), TTLoraConfig(r=5, alpha=4, **targets, **RANDOM), adapter_name="first")
        # another shape, rank and scale on the same weights, and weights of its own
        model.add_adapter("second", TTLoraConfig(shape=[2, 12, 4, 6], r=2, alpha=1, **targets, **RANDOM))
        model.add_adapter("third", TTLoraConfig(target_modules=["key"], **RANDOM))
        return model.eval()

    def deltas(self, model, *adapters):
        """The dense updates of some adapters in the place of the adapted layers."""
        return {
            name: sum(layer.get_delta_weight(a) for a in adapters if a in layer.ttlora_cores)
            for name, layer in layers_of(model).items()
        }

    def expected(self, bert, model, *adapters):
        base = bert.build()
        for name, delta in self.deltas(model, *adapters).items():
            base.get_submodule(name.removeprefix("base_model.model.")).weight.data += delta
        return logits(base, bert.inputs)

    def test_the_first_stays_active(self, bert, model):
        assert model.active_adapter == "first"
        torch.testing.assert_close(logits(model, bert.inputs), self.expected(bert, model, "first"))
        assert {n.rpartition(".")[2] for n, p in model.named_parameters() if p.requires_grad} == {"first"}

    @pytest.mark.parametrize("name", ["first", "second", "third"])
    def test_set(self, bert, model, name):
        model.set_adapter(name)
        torch.testing.assert_close(logits(model, bert.inputs), self.expected(bert, model, name))
        assert {n.rpartition(".")[2] for n, p in model.named_parameters() if p.requires_grad} == {name}

    def test_several_at_once_add_up(self, bert, model):
        model.base_model.set_adapter(["first", "second", "third"])
        together = logits(model, bert.inputs)
        torch.testing.assert_close(together, self.expected(bert, model, "first", "second", "third"))
        model.merge_adapter(["first", "third"])
        torch.testing.assert_close(logits(model, bert.inputs), self.expected(bert, model, "first", "third"))
        model.unmerge_adapter()
        torch.testing.assert_close(logits(model, bert.inputs), together)
        expected = self.expected(bert, model, "second", "third")
        merged = model.merge_and_unload(adapter_names=["second", "third"])
        torch.testing.assert_close(logits(merged, bert.inputs), expected)

    def test_disable(self, bert, model):
        base, expected = logits(bert.build(), bert.inputs), logits(model, bert.inputs)
        with model.disable_adapter():
            assert torch.equal(logits(model, bert.inputs), base)
        assert torch.equal(logits(model, bert.inputs), expected)
        model.base_model.disable_adapter_layers()
        assert torch.equal(logits(model, bert.inputs), base)
        model.base_model.enable_adapter_layers()
        assert torch.equal(logits(model, bert.inputs), expected)

    def test_delete(self, bert, model):
        model.delete_adapter("second")
        assert "second" not in model.peft_config
        for layer in layers_of(model).values():
            by_adapter = [name for name in (*vars(layer), *layer._modules) if name.startswith("ttlora_")]
            assert len(by_adapter) >= 3
            assert all("second" not in getattr(layer, name) for name in by_adapter)
        torch.testing.assert_close(logits(model, bert.inputs), self.expected(bert, model, "first"))
        with pytest.raises(ValueError, match="does not exist"):
            model.delete_adapter("second")
        model.add_adapter("second", TTLoraConfig(r=1, **RANDOM))
        model.set_adapter("second")
        torch.testing.assert_close(logits(model, bert.inputs), self.expected(bert, model, "second"))

    def test_deleting_the_active_one_makes_another_active(self, bert, model):
        with pytest.warns(UserWarning, match="is now deleted"):
            model.delete_adapter("first")
        assert torch.isfinite(logits(model, bert.inputs)).all()
        assert "first" not in model.peft_config

    def test_a_merged_adapter_is_not_deleted(self, model):
        model.merge_adapter(["first"])
        with pytest.raises(ValueError, match="while they are merged"):
            model.delete_adapter("first")

    def test_one_that_exists_is_not_added_again(self, model):
        with pytest.raises(ValueError, match="already exists"):
            model.add_adapter("first", TTLoraConfig())

    def test_training_one_leaves_the_others(self, bert, model):
        before = {name: value.clone() for name, value in model.state_dict().items()}
        model.set_adapter("second")
        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
        model(**bert.inputs).logits.sum().backward()
        optimizer.step()
        changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
        assert changed == {name for name in before if name.endswith("ttlora_cores.second")}

    def test_beside_an_adapter_of_another_method(self, bert):
        base = get_peft_model(bert.build(), LoraConfig(init_lora_weights=False, target_modules=["query"]))
        expected = logits(base.eval(), bert.inputs)
        model = get_peft_model(base.base_model.model, TTLoraConfig()).eval()
        assert torch.equal(logits(model, bert.inputs), expected)


class TestModulesAndBiases:
    def test_the_head_trains_and_is_saved(self, architectures):
        bert = architectures["bert"]
        model = get_peft_model(bert.build(), TTLoraConfig(task_type="SEQ_CLS"))
        heads = {n for n, p in model.named_parameters() if p.requires_grad and "ttlora_" not in n}
        assert heads == {f"base_model.model.classifier.modules_to_save.default.{part}" for part in ("weight", "bias")}
        state = get_peft_model_state_dict(model)
        assert {n for n in state if "ttlora_cores" not in n} == {
            "base_model.model.classifier.weight",
            "base_model.model.classifier.bias",
        }

    def test_named_modules_are_saved_for_each_adapter(self, architectures):
        bert = architectures["bert"]
        model = get_peft_model(bert.build(), TTLoraConfig(modules_to_save=["classifier"]), adapter_name="first").eval()
        model.add_adapter("second", TTLoraConfig(modules_to_save=["classifier"]))
        base = logits(model, bert.inputs)
        model.base_model.model.classifier.modules_to_save["second"].bias.data += 1
        assert torch.equal(logits(model, bert.inputs), base)
        model.set_adapter("second")
        torch.testing.assert_close(logits(model, bert.inputs), base + 1)

    @pytest.mark.parametrize(("bias", "count"), [("none", 0), ("ttlora_only", 9), ("all", None)])
    def test_biases(self, architectures, bias, count):
        base = architectures["bert"].build()
        every = sum(name.endswith("bias") for name, _ in base.named_parameters())
        model = get_peft_model(base, TTLoraConfig(bias=bias))
        trained = [n for n, p in model.named_parameters() if p.requires_grad and n.endswith("bias")]
        assert len(trained) == (every if count is None else count)
        saved = [n for n in get_peft_model_state_dict(model) if n.endswith("bias")]
        assert len(saved) == len(trained)


class TestMixedBatches:
    NAMES = ("second", "__base__", "first")

    def rows(self, model, inputs, names):
        """What each row would give by itself."""
        together = []
        for row, name in enumerate(names):
            one = {key: value[row : row + 1] for key, value in inputs.items()}
            if name == "__base__":
                with model.disable_adapter():
                    together.append(logits(model, one))
            else:
                model.set_adapter(name)
                together.append(logits(model, one))
        model.set_adapter("first")
        return torch.cat(together)

    @pytest.fixture
    def pair(self):
        def build(architecture, **config):
            model = get_peft_model(architecture.build(), TTLoraConfig(r=5, **RANDOM, **config), adapter_name="first")
            model.add_adapter("second", TTLoraConfig(r=2, alpha=9, **RANDOM, **config))
            return model.eval()

        return build

    def test_every_row_gets_its_own_adapter(self, architecture, pair):
        model = pair(architecture)
        expected = self.rows(model, architecture.inputs, self.NAMES)
        got = logits(model, architecture.inputs, adapter_names=list(self.NAMES))
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)
        assert relative(logits(model, architecture.inputs), expected) > 1e-3
        # nothing of it stays
        assert not any(layer._forward_pre_hooks for layer in layers_of(model).values())

    def test_every_row_gets_its_own_head(self, architectures, pair):
        bert = architectures["bert"]
        model = pair(bert, modules_to_save=["classifier"])
        for number, head in enumerate(model.base_model.model.classifier.modules_to_save.values()):
            head.bias.data += number + 1
        expected = self.rows(model, bert.inputs, self.NAMES)
        torch.testing.assert_close(logits(model, bert.inputs, adapter_names=list(self.NAMES)), expected)

    @pytest.mark.parametrize("kind", ["llama", "gpt2", "t5"])
    @pytest.mark.parametrize("beams", [1, 3])
    def test_generation(self, architectures, pair, kind, beams):
        architecture = architectures[kind]
        # large weights, so that adapters change what is said
        model = pair(architecture, alpha_pattern={".*": 300})
        inputs = {k: v for k, v in architecture.inputs.items() if k != "decoder_input_ids"}
        options = {"num_beams": beams, "max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False}
        got = model.generate(**inputs, **options, adapter_names=list(self.NAMES))
        alone = []
        for row, name in enumerate(self.NAMES):
            one = {key: value[row : row + 1] for key, value in inputs.items()}
            if name == "__base__":
                with model.disable_adapter():
                    alone.append(model.generate(**one, **options))
            else:
                model.set_adapter(name)
                alone.append(model.generate(**one, **options))
        assert torch.equal(got, torch.cat(alone))
        model.set_adapter("first")
        assert not torch.equal(model.generate(**inputs, **options), got)

    @pytest.mark.parametrize(
        ("names", "message"),
        [
            (["first", "second", "fourth"], "non-existing adapter\\(s\\): fourth"),
            (["first", "second"], "should be the same as the number of inputs, but got 2 and 3"),
        ],
    )
    def test_wrong_names(self, architectures, pair, names, message):
        bert = architectures["bert"]
        model = pair(bert)
        with pytest.raises(ValueError, match=message):
            model(**bert.inputs, adapter_names=names)
        assert not any(layer._forward_pre_hooks for layer in layers_of(model).values())

    def test_not_in_training(self, architectures, pair):
        with pytest.raises(ValueError, match="training mode"):
            pair(architectures["bert"]).train()(**architectures["bert"].inputs, adapter_names=list(self.NAMES))

    def test_not_when_merged(self, architectures, pair):
        model = pair(architectures["bert"])
        model.merge_adapter(["first"])
        with pytest.raises(ValueError, match="unmerge_adapter"):
            model(**architectures["bert"].inputs, adapter_names=list(self.NAMES))

    def test_disabled_adapters_stay_disabled(self, architectures, pair):
        bert = architectures["bert"]
        model = pair(bert)
        with model.disable_adapter():
            got = logits(model, bert.inputs, adapter_names=list(self.NAMES))
        assert torch.equal(got, logits(bert.build(), bert.inputs))


class TestLoraConversion:
    @pytest.mark.parametrize("kind", ["bert", "llama", "gpt2", "deberta"])
    def test_a_lora_of_the_trains_rank_is_exact(self, architectures, kind):
        architecture = architectures[kind]
        model = get_peft_model(architecture.build(), TTLoraConfig(r=3, **RANDOM)).eval()
        assert model.supports_lora_conversion()
        config, state = convert_to_lora(model, rank=3)
        lora = get_peft_model(architecture.build(), config).eval()
        set_peft_model_state_dict(lora, state)
        expected = logits(model, architecture.inputs)
        assert relative(logits(lora, architecture.inputs), expected) < 1e-5
        assert relative(logits(architecture.build(), architecture.inputs), expected) > 1e-3

    def test_a_threshold_finds_the_rank(self, architectures):
        model = get_peft_model(architectures["bert"].build(), TTLoraConfig(r=3, **RANDOM))
        config, _ = convert_to_lora(model, rank=0.999999)
        assert set(config.rank_pattern.values()) <= {2, 3}


class TestMemory:
    def test_empty_cores_hold_no_memory_until_they_are_loaded(self, architectures):
        bert = architectures["bert"]
        full = get_peft_model(bert.build(), TTLoraConfig(**RANDOM)).eval()
        empty = get_peft_model(bert.build(), TTLoraConfig(**RANDOM), low_cpu_mem_usage=True).eval()
        assert all(layer.ttlora_cores["default"].is_meta for layer in layers_of(empty).values())
        set_peft_model_state_dict(empty, get_peft_model_state_dict(full), low_cpu_mem_usage=True)
        assert not any(p.is_meta for p in empty.parameters())
        assert torch.equal(logits(empty, bert.inputs), logits(full, bert.inputs))

    def test_a_model_on_the_meta_device(self, architecture):
        with torch.device("meta"):
            base = architecture.kind(architecture.config)
        model = get_peft_model(base, TTLoraConfig())
        assert len(layers_of(model)) == architecture.count
        assert all(p.is_meta for p in model.parameters())


def test_a_second_start_differs_from_the_first(mlp):
    models = [get_peft_model(mlp(), TTLoraConfig(target_modules=["0", "2"])) for _ in range(2)]
    cores = [[layer.ttlora_cores["default"] for layer in layers_of(model).values()] for model in models]
    assert not torch.equal(cores[0][0], cores[1][0])
    assert len({c.numel() for c in cores[0]}) == 2


def test_training_moves_the_update_towards_a_target(mlp):
    torch.manual_seed(1)
    x = torch.randn(64, 16)
    target = mlp(seed=3)(x).detach()
    model = get_peft_model(mlp(), TTLoraConfig(target_modules=["0", "2"], r=4))
    assert isinstance(model, PeftModel)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3)
    losses = []
    for _ in range(150):
        optimizer.zero_grad()
        loss = F.mse_loss(model(x), target)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]
