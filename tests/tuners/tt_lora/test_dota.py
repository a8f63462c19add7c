"""`init_weights="dota"`: cores that start as the pretrained weight, and an update that is measured from there."""

import copy
import json
import math
from dataclasses import replace

import pytest
import torch
from bitsandbytes.nn import Linear4bit
from peft import PeftModel, get_peft_model, get_peft_model_state_dict
from peft.utils.hotswap import hotswap_adapter
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import MixtralConfig, MixtralForCausalLM
from transformers.pytorch_utils import Conv1D

import ttlora
from ttlora import TTLoraConfig
from ttlora.adapters.merge import merge_adapter
from ttlora.adapters.read import read_adapter
from ttlora.errors import UserError
from ttlora.finetune.finished import FinishedRun
from ttlora.finetune.recipe import Recipe
from ttlora.finetune.run import train as run_recipe
from ttlora.tuners.tt_lora import TTLoraLayer, saved_update


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.attention = nn.MultiheadAttention(12, 3, batch_first=True)

    def forward(self, x):
        return self.attention(x, x, x)[0]


def mixtral():
    config = MixtralConfig(
        vocab_size=40, hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, num_local_experts=4, bos_token_id=1, eos_token_id=2, pad_token_id=0,
    )  # fmt: skip
    return MixtralForCausalLM(config)


EXPERTS = {"target_modules": [], "target_parameters": ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]}
KINDS = {
    "linear": (lambda: nn.Sequential(nn.Linear(16, 24)), lambda: torch.randn(3, 16), {}),
    "unaligned": (lambda: nn.Sequential(nn.Linear(16, 24)), lambda: torch.randn(3, 16), {"shape": [4, 12, 8]}),
    "Conv1D": (lambda: nn.Sequential(Conv1D(24, 16)), lambda: torch.randn(3, 16), {}),
    "embedding": (lambda: nn.Sequential(nn.Embedding(30, 12)), lambda: torch.randint(0, 30, (4, 7)), {}),
    "convolution": (lambda: nn.Sequential(nn.Conv2d(6, 10, 3, groups=2)), lambda: torch.randn(2, 6, 5, 5), {}),
    "attention": (Attention, lambda: torch.randn(2, 5, 12), {"target_modules": ["attention"]}),
    "experts": (mixtral, lambda: torch.randint(0, 40, (2, 9)), EXPERTS),
}


@pytest.fixture(params=KINDS)
def kind(request):
    build, inputs, settings = KINDS[request.param]
    model = build().eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.copy_(0.3 * torch.randn_like(weight))
    return model, inputs(), {"target_modules": ["0"], **settings}


def dota(**settings):
    return TTLoraConfig(**{"init_weights": "dota", **settings})


def adapted(base, **settings):
    return get_peft_model(copy.deepcopy(base), dota(**settings)).eval()


def layers_of(model):
    return [module for module in model.modules() if isinstance(module, TTLoraLayer)]


def output(model, *args, **kwargs):
    with torch.no_grad():
        found = model(*args, **kwargs)
    return getattr(found, "logits", found)


def assert_plain(model, x, base):
    """The model does what its base does, to the last bit."""
    # attention computes with whole weights that are given to it, and rounds in another way than with its own
    tolerance = 1e-6 if isinstance(base, Attention) else 0
    torch.testing.assert_close(output(model, x), output(base, x), rtol=tolerance, atol=tolerance)


def move(model, adapter="default", seed=1):
    """What training does to cores."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for layer in layers_of(model):
            cores = layer.cores[adapter]
            cores += 0.3 * cores.square().mean().sqrt() * torch.randn(cores.shape, generator=generator).to(cores)
    return model


@pytest.fixture
def base(mlp):
    return mlp()


@pytest.fixture
def x():
    return torch.randn(4, 16)


class TestEveryKind:
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    def test_the_start_leaves_every_bit(self, kind, dtype):
        base, x, settings = kind
        base, x = base.to(dtype), x.to(dtype) if x.is_floating_point() else x
        model = adapted(base, **settings)
        assert_plain(model, x, base)
        assert not any(layer.get_delta_weight("default").any() for layer in layers_of(model))
        model.merge_adapter()
        assert_plain(model, x, base)

    def test_at_full_rank_the_start_is_the_weight(self, kind):
        base, _, settings = kind
        for layer in layers_of(adapted(base, **{"r": 10**6, "alpha": 2.5, **settings})):
            layer.cores["default"].data.zero_()
            torch.testing.assert_close(layer.get_delta_weight("default"), -layer.get_base_weight())

    def test_disable_merge_unmerge_unload(self, kind):
        base, x, settings = kind
        model = move(adapted(base, **settings))
        expected, plain = output(model, x), output(base, x)
        assert not torch.allclose(expected, plain, atol=1e-3)
        with model.disable_adapter():
            assert_plain(model, x, base)
        model.merge_adapter(safe_merge=True)
        torch.testing.assert_close(output(model, x), expected, rtol=1e-4, atol=1e-5)
        model.unmerge_adapter()
        torch.testing.assert_close(output(model, x), expected, rtol=1e-4, atol=1e-5)
        unloaded = copy.deepcopy(model).unload()
        for name, weight in base.named_parameters():
            torch.testing.assert_close(unloaded.get_parameter(name), weight)
        torch.testing.assert_close(output(model.merge_and_unload(), x), expected, rtol=1e-4, atol=1e-5)

    def test_save_and_load(self, kind, tmp_path):
        base, x, settings = kind
        model = move(adapted(base, **settings))
        model.save_pretrained(tmp_path)
        loaded = PeftModel.from_pretrained(copy.deepcopy(base), tmp_path).eval()
        assert torch.equal(output(loaded, x), output(model, x))


class TestTraining:
    def test_only_the_cores_train_and_the_base_stays(self, base, x):
        model = adapted(base, target_modules=["0", "2"], r=3)
        before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        trained = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
        assert set(trained) == {f"base_model.model.{n}.ttlora_cores.default" for n in (0, 2)}
        optimizer = torch.optim.AdamW(trained.values(), 1e-2, weight_decay=0.5)
        wanted, losses = torch.randn(4, 8), []
        for _ in range(20):
            loss = (model(x) - wanted).square().mean()
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.item())
        assert losses[-1] < losses[0] - 0.1
        for name, tensor in model.state_dict().items():
            assert torch.equal(tensor, before[name]) == ("ttlora_cores" not in name), name

    def test_gradients_are_those_of_the_updated_weight(self, base, x):
        model = move(adapted(base.double(), target_modules=["0"], core_size=None).double())
        (layer,) = layers_of(model)
        wanted = torch.func.functional_call(
            base, {"0.weight": base[0].weight.detach() + layer.get_delta_weight("default")}, (x.double(),)
        )
        cores = layer.cores["default"]
        losses = model(x.double()).square().sum(), wanted.square().sum()
        torch.testing.assert_close(*(torch.autograd.grad(loss, cores)[0] for loss in losses))

    def test_checkpointing_gives_the_same_gradients(self, architectures):
        architecture = architectures["llama"]
        gradients = []
        for checkpointing in (False, True):
            model = move(get_peft_model(architecture.build(), dota())).train()
            if checkpointing:
                model.gradient_checkpointing_enable({"use_reentrant": False})
                model.enable_input_require_grads()
            model(**architecture.inputs).logits.square().sum().backward()
            gradients.append([layer.cores["default"].grad for layer in layers_of(model)])
        for plain, checkpointed in zip(*gradients, strict=True):
            torch.testing.assert_close(checkpointed, plain)

    @pytest.mark.parametrize("autocast", [False, True])
    def test_in_half_precision(self, base, x, autocast):
        base, x = (base, x) if autocast else (base.bfloat16(), x.bfloat16())
        model = move(adapted(base, target_modules=["0", "2"]))
        exact = output(copy.deepcopy(model).float(), x.float())
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            found = model(x)
        assert found.dtype == torch.bfloat16
        torch.testing.assert_close(found.float(), exact, rtol=0.05, atol=0.05)
        found.float().square().sum().backward()
        assert all(layer.cores["default"].grad.norm() > 0 for layer in layers_of(model))

    def test_a_further_adapter_as_reference_is_the_same(self, base, x):
        model = move(adapted(base, target_modules=["0"]))
        model.base_model.model[0].starts["default"].mul_(0.5)  # as of another base
        model.add_adapter("ref", model.peft_config["default"])
        before = output(model, x)
        model.set_adapter("ref")
        assert torch.equal(output(model, x), before)

    @pytest.mark.usefixtures("unchecked_shapes")
    def test_compiled(self, base, x):
        model = move(adapted(base, target_modules=["0"]))
        torch.testing.assert_close(torch.compile(model, backend="eager", fullgraph=True)(x), model(x))


class TestSaved:
    def test_what_the_file_holds(self, base, tmp_path):
        model = move(adapted(base, target_modules=["0"], r=3))
        model.save_pretrained(tmp_path)
        saved = load_file(tmp_path / "adapter_model.safetensors")
        assert {key: tensor.shape for key, tensor in saved.items()} == {
            f"base_model.model.0.ttlora_{part}": model.base_model.model[0].cores["default"].shape
            for part in ("cores", "start")
        }
        config = json.loads((tmp_path / "adapter_config.json").read_text())
        assert config["init_weights"] == "dota"

    @pytest.mark.parametrize("low_cpu_mem_usage", [False, True])
    def test_the_update_is_the_same_on_another_base_under_another_name(self, base, mlp, tmp_path, low_cpu_mem_usage):
        model = move(adapted(base, target_modules=["0"]))
        model.save_pretrained(tmp_path)
        loaded = PeftModel.from_pretrained(
            mlp(seed=5), tmp_path, adapter_name="other", low_cpu_mem_usage=low_cpu_mem_usage
        )
        assert torch.equal(
            loaded.base_model.model[0].get_delta_weight("other"), model.base_model.model[0].get_delta_weight("default")
        )

    def test_it_trains_on_from_where_it_was(self, base, x, tmp_path):
        model = move(adapted(base, target_modules=["0"]))
        model.save_pretrained(tmp_path)
        loaded = PeftModel.from_pretrained(base, tmp_path, is_trainable=True).eval()
        assert torch.equal(output(loaded, x), output(model, x))
        loaded(x).sum().backward()
        assert loaded.base_model.model[0].cores["default"].grad.norm() > 0

    def test_it_takes_no_tt_svd_to_load_one(self, base, tmp_path, monkeypatch):
        adapted(base, target_modules=["0"]).save_pretrained(tmp_path)
        monkeypatch.setattr("ttlora.tuners.tt_lora.layer.pretrained_update", None)
        PeftModel.from_pretrained(base, tmp_path)

    def test_a_head_is_saved_beside_it(self, architectures, tmp_path):
        architecture = architectures["bert"]
        model = get_peft_model(architecture.build(), dota(task_type="SEQ_CLS"))
        move(model)
        with torch.no_grad():
            model.base_model.model.classifier.modules_to_save["default"].weight += 1
        model.save_pretrained(tmp_path)
        loaded = PeftModel.from_pretrained(architecture.build(), tmp_path)
        assert torch.equal(output(loaded.eval(), **architecture.inputs), output(model.eval(), **architecture.inputs))

    @pytest.mark.parametrize("missing", ["cores", "start"])
    def test_a_file_without_a_part_is_refused(self, base, tmp_path, missing):
        adapted(base, target_modules=["0"]).save_pretrained(tmp_path)
        file = tmp_path / "adapter_model.safetensors"
        save_file({key: t for key, t in load_file(file).items() if not key.endswith(missing)}, file)
        with pytest.raises(UserError, match=f"'0' has no ttlora_{missing}"):
            read_adapter(tmp_path)


class TestSeveralAdapters:
    @pytest.fixture
    def model(self, base):
        model = adapted(base, target_modules=["0", "2"], r=3)
        model.add_adapter("second", dota(target_modules=["0"], r=2))
        model.add_adapter("plain", TTLoraConfig(target_modules=["0", "2"], init_weights=False))
        for adapter, seed in (("default", 1), ("second", 2)):
            with torch.no_grad():
                for layer in layers_of(model):
                    if adapter in layer.cores:
                        cores = layer.cores[adapter]
                        noise = torch.randn(cores.shape, generator=torch.Generator().manual_seed(seed))
                        cores += 0.3 * cores.square().mean().sqrt() * noise
        return model.eval()

    def test_rows_of_a_mixed_batch(self, model):
        names = ["second", "default", "__base__", "plain", "default"]
        x = torch.randn(5, 16)
        found = output(model, x, adapter_names=names)
        for row, name in enumerate(names):
            if name == "__base__":
                with model.disable_adapter():
                    wanted = output(model, x)
            else:
                model.set_adapter(name)
                wanted = output(model, x)
            torch.testing.assert_close(found[row], wanted[row])

    def test_active_together_and_merged_together(self, model, x):
        model.base_model.set_adapter(["default", "second", "plain"])
        expected = output(model, x)
        first = layers_of(model)[0]
        deltas = sum(first.get_delta_weight(name) for name in ("default", "second", "plain"))
        weight = first.get_base_weight() + deltas
        model.merge_adapter()
        torch.testing.assert_close(first.get_base_weight(), weight)
        torch.testing.assert_close(output(model, x), expected, rtol=1e-4, atol=1e-5)

    def test_deleting_one_leaves_nothing_of_it(self, model):
        model.delete_adapter("default")
        assert not any("default" in name for name in model.state_dict())
        assert any("ttlora_start.second" in name for name in model.state_dict())

    def test_a_plain_adapter_in_its_place_has_no_start(self, model):
        layer = layers_of(model)[0]
        layer.update_layer("default", TTLoraConfig(r=3), "0")
        assert "default" not in layer.starts
        assert not layer.get_delta_weight("default").any()

    def test_a_weighted_sum_is_exact(self, model):
        names, weights = ["default", "second", "plain"], [0.5, -2.0, 1.0]
        deltas = [layer.get_delta_weight for layer in layers_of(model)]
        wanted = [
            sum(w * delta(name) for name, w in zip(names, weights, strict=True) if name in layer.cores)
            for delta, layer in zip(deltas, layers_of(model), strict=True)
        ]
        model.base_model.add_weighted_adapter(names, weights, "sum")
        assert model.peft_config["sum"].init_weights is True
        for delta, expected in zip(deltas, wanted, strict=True):
            torch.testing.assert_close(delta("sum"), expected, rtol=1e-4, atol=1e-6)

    def test_none_is_swapped_for_it(self, model, base, tmp_path):
        adapted(base, target_modules=["0", "2"], r=3).save_pretrained(tmp_path)
        for adapter in ("default", "plain"):
            with pytest.raises(ValueError, match="init_weights='dota'"):
                hotswap_adapter(model, tmp_path, adapter)


class TestCommands:
    """What is done to a saved adapter without its base model."""

    @pytest.fixture
    def llama_and_adapter(self, architectures, tmp_path):
        architecture = architectures["llama"]
        model = move(get_peft_model(architecture.build(), dota(r=3, alpha=2.0)))
        model.save_pretrained(tmp_path / "dota")
        return architecture, tmp_path, output(model.eval(), **architecture.inputs)

    def test_export_has_twice_the_rank_and_the_same_logits(self, llama_and_adapter):
        architecture, folder, expected = llama_and_adapter
        lora = ttlora.export(folder / "dota", folder / "lora")
        assert lora.config.r == 6
        loaded = PeftModel.from_pretrained(architecture.build(), folder / "lora").eval()
        torch.testing.assert_close(output(loaded, **architecture.inputs), expected, rtol=1e-4, atol=1e-5)

    def test_round_makes_a_plain_train_of_it(self, llama_and_adapter):
        architecture, folder, expected = llama_and_adapter
        rounded = ttlora.round(folder / "dota", folder / "plain", tolerance=1e-6)
        assert (rounded.config.init_weights, max(max(module.shape.ranks) for module in rounded.modules)) == (True, 6)
        loaded = PeftModel.from_pretrained(architecture.build(), folder / "plain").eval()
        assert not any("ttlora_start" in name for name in loaded.state_dict())
        torch.testing.assert_close(output(loaded, **architecture.inputs), expected, rtol=1e-4, atol=1e-5)
        smaller = ttlora.round(folder / "dota", folder / "small", r=2)
        assert 0 < smaller.relative_error < 1

    def test_a_bound_on_the_parameters(self, llama_and_adapter):
        _, folder, _ = llama_and_adapter
        size = ttlora.inspect(folder / "dota").adapter_parameters
        small = ttlora.round(folder / "dota", folder / "small", parameters=size)
        assert sum(module.shape.parameters for module in small.modules) <= size

    def test_inspect_counts_what_trains_and_measures_what_changed(self, llama_and_adapter):
        architecture, folder, _ = llama_and_adapter
        report = ttlora.inspect(folder / "dota")
        loaded = PeftModel.from_pretrained(architecture.build(), folder / "dota")
        assert report.adapter_parameters == sum(len(layer.cores["default"]) for layer in layers_of(loaded))
        for module in report.modules:
            delta = loaded.base_model.model.get_submodule(module.name).get_delta_weight("default")
            assert module.norm == pytest.approx(delta.norm().item(), rel=1e-4)

    def test_merge(self, llama_and_adapter):
        architecture, folder, expected = llama_and_adapter
        merged = merge_adapter(read_adapter(folder / "dota"), architecture.build())
        torch.testing.assert_close(output(merged.eval(), **architecture.inputs), expected, rtol=1e-4, atol=1e-5)

    def test_a_pool_refuses_it(self, llama_and_adapter):
        architecture, folder, _ = llama_and_adapter
        with pytest.raises(UserError, match="init_weights='dota'"):
            ttlora.load_many(architecture.build(), [folder / "dota"])


def test_a_4_bit_base_stays_as_it_was_quantised():
    quantised = Linear4bit(64, 64, bias=False, quant_type="nf4").to("cpu")
    quantised.support_avx512bf16_for_cpu = False
    base, x = nn.Sequential(quantised), torch.randn(3, 64)
    plain, packed = output(base, x), quantised.weight.data.clone()
    model = get_peft_model(base, dota(target_modules=["0"], r=10**6)).eval()
    (layer,) = layers_of(model)
    assert torch.equal(output(model, x), plain)
    move(model)
    assert not torch.allclose(output(model, x), plain, atol=1e-2)
    assert torch.equal(quantised.weight.data, packed)
    with model.disable_adapter():
        assert torch.equal(output(model, x), plain)
    layer.cores["default"].data.zero_()
    torch.testing.assert_close(layer.get_delta_weight("default"), -layer.get_base_weight(), rtol=1e-4, atol=1e-4)


def test_a_model_without_weights_has_the_sizes(architectures):
    with torch.device("meta"):
        base = architectures["llama"].kind(architectures["llama"].config)
    model = get_peft_model(base, dota())
    plain = get_peft_model(architectures["llama"].build(), TTLoraConfig())
    assert {name: cores.shape for name, cores in get_peft_model_state_dict(plain).items()} == {
        name: cores.shape for name, cores in get_peft_model_state_dict(model).items() if "start" not in name
    }


@pytest.mark.parametrize(
    ("weight", "settings", "message"),
    [(math.nan, {}, "^0: the pretrained weight is not finite"), (1.0, {"alpha": 0}, "^0: with a scale of 0")],
)
def test_what_has_no_start_is_refused_in_one_line_and_leaves_the_model(base, weight, settings, message):
    base[0].weight.data.fill_(weight)
    with pytest.raises(ValueError, match=message) as error:
        get_peft_model(base, dota(target_modules=["0"], **settings))
    assert "\n" not in str(error.value)
    assert type(base[0]) is nn.Linear


def test_its_cores_are_three_times_as_large_as_those_that_start_at_zero():
    config = TTLoraConfig(weight_sizes={"0": [16, 24]})
    plain, from_weight = (saved_update(replace(config, init_weights=start), "0") for start in (True, "dota"))
    assert from_weight.core_size == 3 * plain.core_size
    assert saved_update(replace(config, init_weights="dota", core_size=0.1), "0").core_size == 0.1


def test_no_other_word_is_a_start():
    with pytest.raises(ValueError, match="init_weights='pissa' is not one of True, False, 'paper', 'dota'"):
        TTLoraConfig(init_weights="pissa")


def test_a_run_gives_the_same_metric_from_what_was_saved(bert, data, tmp_path):
    record = run_recipe(
        Recipe(
            model=str(bert), data=str(data), output=str(tmp_path / "out"), task="glue/sst2", epochs=1, batch_size=24,
            threads=1, settings={"init_weights": "dota"},
        ),
        quiet=True,
    )  # fmt: skip
    again = FinishedRun.load(str(tmp_path / "out")).evaluate()
    assert (again.metrics, again.validation_loss) == (record.metrics, record.validation_loss)
    assert record.trainable_parameters == record.adapter_parameters + record.head_parameters
