import json
import os
import subprocess
import sys

import pytest
import torch
from peft import (
    AutoPeftModelForCausalLM,
    AutoPeftModelForSequenceClassification,
    PeftConfig,
    PeftModel,
    get_peft_model,
    get_peft_model_state_dict,
    inject_adapter_in_model,
    set_peft_model_state_dict,
)
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from ttlora import TTLoraConfig
from ttlora.tensor_train import TTShape
from ttlora.tensor_train import shape as shape_module
from ttlora.tuners.tt_lora import TTLoraLayer

RANDOM = {"init_weights": False}
# of what is adapted by default
LLAMA_SIZES = {
    "v_proj": [12, 24],
    "o_proj": [24, 24],
    "gate_proj": [40, 24],
    "up_proj": [40, 24],
    "down_proj": [24, 40],
}


def layers_of(model):
    return {name: module for name, module in model.named_modules() if isinstance(module, TTLoraLayer)}


def logits(model, inputs, **kwargs):
    with torch.no_grad():
        return model.eval()(**inputs, **kwargs).logits


def edit_config(folder, **changes):
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


class TestSaveAndLoad:
    @pytest.mark.parametrize(
        "config",
        [
            {},
            {
                "target_modules": ["query", "value"],
                "r": 5,
                "shape_pattern": {"query": [24, 24]},
                "rank_pattern": {"0.*": 2},
                "alpha_pattern": {"value": 7},
            },
            {"init_weights": "paper"},
            {"core_size": None, "scaling": "alpha/r"},
            {"task_type": "SEQ_CLS", "bias": "all", "dropout": 0.1},
        ],
    )
    def test_logits_are_the_same_to_the_bit(self, architectures, config, tmp_path):
        bert = architectures["bert"]
        model = get_peft_model(bert.build(), TTLoraConfig(**{**RANDOM, **config}))
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.data += 0.01 * torch.randn_like(parameter)
        expected = logits(model, bert.inputs)
        model.save_pretrained(tmp_path)
        assert not torch.equal(logits(bert.build(), bert.inputs), expected)
        loaded = PeftModel.from_pretrained(bert.build(), tmp_path)
        assert torch.equal(logits(loaded, bert.inputs), expected)
        assert not any(layer.ttlora_cores["default"].requires_grad for layer in layers_of(loaded).values())
        again = PeftModel.from_pretrained(bert.build(), tmp_path, is_trainable=True, low_cpu_mem_usage=True)
        assert torch.equal(logits(again, bert.inputs), expected)
        trained = {name for name, p in model.named_parameters() if p.requires_grad}
        assert {name for name, p in again.named_parameters() if p.requires_grad} == trained

    def test_every_architecture(self, architecture, tmp_path):
        model = get_peft_model(architecture.build(), TTLoraConfig(**RANDOM))
        expected = logits(model, architecture.inputs)
        model.save_pretrained(tmp_path)
        loaded = PeftModel.from_pretrained(architecture.build(), tmp_path)
        assert torch.equal(logits(loaded, architecture.inputs), expected)

    def test_the_folder_holds_one_vector_a_layer_and_no_pickle(self, architectures, tmp_path):
        bert = architectures["bert"]
        model = get_peft_model(bert.build(), TTLoraConfig(**RANDOM))
        model.save_pretrained(tmp_path)
        assert {path.name for path in tmp_path.iterdir()} <= {
            "adapter_config.json",
            "adapter_model.safetensors",
            "README.md",
        }
        with safe_open(tmp_path / "adapter_model.safetensors", "pt") as file:
            assert set(file.keys()) == {f"{name}.ttlora_cores" for name in layers_of(model)}
            for name, layer in layers_of(model).items():
                cores = file.get_tensor(f"{name}.ttlora_cores")
                assert cores.shape == (layer.ttlora_update["default"].shape.parameters,)
                assert cores.dtype == torch.float32

    def test_a_half_precision_base(self, architectures, tmp_path):
        bert = architectures["bert"]
        model = get_peft_model(bert.build(dtype=torch.bfloat16), TTLoraConfig(**RANDOM))
        expected = logits(model, bert.inputs)
        model.save_pretrained(tmp_path)
        loaded = PeftModel.from_pretrained(bert.build(dtype=torch.bfloat16), tmp_path)
        assert torch.equal(logits(loaded, bert.inputs), expected)
        cores = [layer.ttlora_cores["default"] for layer in layers_of(loaded).values()]
        assert {c.dtype for c in cores} == {torch.float32}
        half = PeftModel.from_pretrained(bert.build(dtype=torch.bfloat16), tmp_path, autocast_adapter_dtype=False)
        cores = [layer.ttlora_cores["default"] for layer in layers_of(half).values()]
        assert {c.dtype for c in cores} == {torch.bfloat16}
        assert (logits(half, bert.inputs) - expected).norm() < 0.05 * expected.norm()

    @pytest.mark.parametrize("name", ["lora", "ttlora", "cores", "query", "default_0"])
    def test_adapters_may_be_called_as_parts_of_the_model_are(self, architectures, name, tmp_path):
        bert = architectures["bert"]
        model = get_peft_model(bert.build(), TTLoraConfig(**RANDOM), adapter_name=name)
        expected = logits(model, bert.inputs)
        model.save_pretrained(tmp_path)
        loaded = PeftModel.from_pretrained(bert.build(), tmp_path / name, adapter_name="other")
        assert torch.equal(logits(loaded, bert.inputs), expected)
        loaded.load_adapter(tmp_path / name, adapter_name=name)
        loaded.set_adapter(name)
        assert torch.equal(logits(loaded, bert.inputs), expected)

    def test_adapters_of_different_shapes_side_by_side(self, architectures, tmp_path):
        bert = architectures["bert"]
        expected = {}
        targets = {"target_modules": ["query", "value"]}
        configs = {"one": {"r": 5, "alpha": 4}, "two": {"shape": [2, 12, 4, 6], "r": 2, "alpha": 9}}
        for name, config in configs.items():
            model = get_peft_model(bert.build(), TTLoraConfig(**RANDOM, **targets, **config))
            expected[name] = logits(model, bert.inputs)
            model.save_pretrained(tmp_path / name)
        model = PeftModel.from_pretrained(bert.build(), tmp_path / "one", adapter_name="one")
        model.load_adapter(tmp_path / "two", adapter_name="two")
        for name in ("one", "two", "one"):
            model.set_adapter(name)
            assert torch.equal(logits(model, bert.inputs), expected[name])

    def test_state_dicts(self, architectures):
        bert = architectures["bert"]
        models = [get_peft_model(bert.build(), TTLoraConfig(**RANDOM)) for _ in range(2)]
        set_peft_model_state_dict(models[1], get_peft_model_state_dict(models[0]))
        assert torch.equal(logits(models[1], bert.inputs), logits(models[0], bert.inputs))


class TestFromBeforeTheDefaultsOfToday:
    """Adapters that were made when r=5, alpha=4 and query and value were the defaults; their files name all three."""

    @pytest.mark.parametrize(
        ("kind", "targets", "shapes"),
        [
            ("bert", ["query", "value"], {"shape": [4, 6, 6, 4]}),
            ("bert", ["query", "value"], {"shape": [24, 24]}),
            ("deberta", ["in_proj"], {"shape": [8, 9, 6, 4]}),
            ("llama", ["q_proj", "v_proj"], {"shape_pattern": {"q_proj": [24, 24], "v_proj": [12, 24]}}),
            ("gpt2", ["c_attn"], {"shape": [8, 9, 6, 4]}),
            ("t5", ["q", "v"], {"shape": [4, 6, 6, 4]}),
        ],
    )
    @pytest.mark.parametrize("core_size", ["even", None])
    def test_they_load_as_they_were(self, architectures, kind, targets, shapes, core_size, tmp_path):
        architecture = architectures[kind]
        old = TTLoraConfig(r=5, alpha=4, core_size=core_size, target_modules=targets, **shapes, **RANDOM)
        model = get_peft_model(architecture.build(), old)
        expected = logits(model, architecture.inputs)
        assert not torch.equal(expected, logits(architecture.build(), architecture.inputs))
        model.save_pretrained(tmp_path)
        saved = json.loads((tmp_path / "adapter_config.json").read_text())
        assert (saved["r"], saved["alpha"], saved["core_size"]) == (5, 4, core_size)
        assert sorted(saved["target_modules"]) == targets
        assert {name: saved[name] for name in shapes} == shapes
        loaded = PeftModel.from_pretrained(architecture.build(), tmp_path)
        assert len(layers_of(loaded)) == architecture.queries_and_values
        assert torch.equal(logits(loaded, architecture.inputs), expected)
        # beside one of today
        loaded.add_adapter("new", TTLoraConfig(**RANDOM))
        assert torch.equal(logits(loaded, architecture.inputs), expected)
        loaded.set_adapter("new")
        assert sum("new" in layer.ttlora_cores for layer in layers_of(loaded).values()) == architecture.count
        assert not torch.equal(logits(loaded, architecture.inputs), expected)


class TestWhatTheFileSays:
    def test_the_shapes_that_auto_chose(self, architectures, tmp_path):
        llama = architectures["llama"]
        get_peft_model(llama.build(), TTLoraConfig()).save_pretrained(tmp_path)
        saved = json.loads((tmp_path / "adapter_config.json").read_text())
        assert saved["weight_sizes"] == LLAMA_SIZES
        assert saved["shape_pattern"] == {name: list(TTShape.build(*size).dims) for name, size in LLAMA_SIZES.items()}

    @pytest.mark.parametrize("kind", ["bert", "llama"])
    def test_a_later_choice_of_auto_changes_no_saved_adapter(self, architectures, kind, tmp_path, monkeypatch):
        architecture = architectures[kind]
        model = get_peft_model(architecture.build(), TTLoraConfig(**RANDOM))
        expected = logits(model, architecture.inputs)
        model.save_pretrained(tmp_path)

        build = TTShape.build

        def choose_otherwise(out_features, in_features, dims="auto", r=5):
            return build(out_features, in_features, [out_features, in_features] if dims == "auto" else dims, r)

        monkeypatch.setattr(shape_module.TTShape, "build", choose_otherwise)
        assert (
            layers_of(get_peft_model(architecture.build(), TTLoraConfig()))
            .popitem()[1]
            .ttlora_update["default"]
            .shape.order
            == 2
        )
        loaded = PeftModel.from_pretrained(architecture.build(), tmp_path)
        assert torch.equal(logits(loaded, architecture.inputs), expected)

    def test_a_loaded_adapter_does_not_make_the_papers_start_again(self, mlp, tmp_path, monkeypatch):
        get_peft_model(mlp(), TTLoraConfig(target_modules=["0"], init_weights="paper")).save_pretrained(tmp_path)
        monkeypatch.setattr("ttlora.tuners.tt_lora.layer.gaussian_update", lambda *_: pytest.fail("it was made"))
        PeftModel.from_pretrained(mlp(), tmp_path)


class TestWhatCannotBeLoaded:
    @pytest.fixture
    def saved(self, mlp, tmp_path):
        get_peft_model(mlp(), TTLoraConfig(target_modules=["0", "2"], **RANDOM)).save_pretrained(tmp_path)
        return tmp_path

    def test_an_adapter_of_a_model_of_other_sizes(self, saved):
        other = nn.Sequential(nn.Linear(16, 48), nn.ReLU(), nn.Linear(48, 8))
        with pytest.raises(ValueError, match=r"0 is 48 x 16, but this adapter was made for a model .* 24 x 16"):
            PeftModel.from_pretrained(other, saved)

    def test_a_shape_that_would_fill_the_memory(self, saved):
        edit_config(saved, shape=[2**15, *[1] * 250, 2**15], r=2**30, shape_pattern={}, weight_sizes={})
        with torch.device("meta"):
            large = nn.Sequential(nn.Linear(2**15, 2**15), nn.ReLU(), nn.Linear(2**15, 2**15))
        with pytest.raises(ValueError, match=r"0: shape .* takes 270,582,939,648 parameters"):
            PeftModel.from_pretrained(large, saved)

    @pytest.mark.parametrize("wrong", [{"r": 10**12}, {"r": -1}, {"shape": [0]}, {"shape_pattern": []}, {"alpha": "x"}])
    def test_a_config_of_nonsense(self, saved, mlp, wrong):
        edit_config(saved, **wrong)
        with pytest.raises(ValueError, match=next(iter(wrong))):
            PeftModel.from_pretrained(mlp(), saved)

    def test_cores_of_another_length(self, saved, mlp):
        state = load_file(saved / "adapter_model.safetensors")
        save_file({name: cores[:-1].clone() for name, cores in state.items()}, saved / "adapter_model.safetensors")
        with pytest.raises(RuntimeError, match=r"size mismatch for base_model.model.0.ttlora_cores"):
            PeftModel.from_pretrained(mlp(), saved)


def test_a_fresh_process_needs_only_the_import(architectures, tmp_path):
    bert = architectures["bert"]
    bert.build().save_pretrained(tmp_path / "base")
    model = get_peft_model(bert.build(), TTLoraConfig(**RANDOM))
    model.save_pretrained(tmp_path / "adapter")
    save_file(dict(bert.inputs), tmp_path / "inputs.safetensors")
    program = """
import sys
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification

def load():
    base = AutoModelForSequenceClassification.from_pretrained("base")
    return PeftModel.from_pretrained(base, "adapter").eval()

try:
    load()
except KeyError as error:
    print("without the import:", error)
import ttlora
save_file({"logits": load()(**load_file("inputs.safetensors")).logits.detach()}, "logits.safetensors")
"""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", program],
        cwd=tmp_path, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout == "without the import: 'TTLORA'\n"
    expected = logits(model, bert.inputs)
    torch.testing.assert_close(load_file(tmp_path / "logits.safetensors")["logits"], expected)


class TestAutoClasses:
    @pytest.mark.parametrize(
        ("kind", "task", "auto"),
        [
            ("bert", "SEQ_CLS", AutoPeftModelForSequenceClassification),
            ("llama", "CAUSAL_LM", AutoPeftModelForCausalLM),
        ],
    )
    def test_the_base_model_is_found_from_the_adapter(self, architectures, kind, task, auto, tmp_path):
        architecture = architectures[kind]
        architecture.build().save_pretrained(tmp_path / "base")
        base = architecture.kind.from_pretrained(tmp_path / "base")
        model = get_peft_model(base, TTLoraConfig(task_type=task, **RANDOM))
        expected = logits(model, architecture.inputs)
        model.save_pretrained(tmp_path / "adapter")
        assert PeftConfig.from_pretrained(tmp_path / "adapter").base_model_name_or_path == str(tmp_path / "base")
        assert torch.equal(logits(auto.from_pretrained(tmp_path / "adapter"), architecture.inputs), expected)


class TestTransformersOwnAdapters:
    @pytest.fixture
    def llama(self, architectures):
        return architectures["llama"]

    def test_add_set_disable_delete(self, llama):
        model, base = llama.build(), logits(llama.build(), llama.inputs)
        model.add_adapter(TTLoraConfig(**RANDOM), adapter_name="one")
        one = logits(model, llama.inputs)
        assert not torch.equal(one, base)
        model.add_adapter(TTLoraConfig(r=3, shape_pattern={"v_proj": [12, 24]}, **RANDOM), adapter_name="two")
        two = logits(model, llama.inputs)
        assert model.active_adapters() == ["two"]
        model.set_adapter("one")
        assert torch.equal(logits(model, llama.inputs), one)
        model.disable_adapters()
        assert torch.equal(logits(model, llama.inputs), base)
        model.enable_adapters()
        model.set_adapter("two")
        model.delete_adapter("one")
        assert torch.equal(logits(model, llama.inputs), two)
        assert all(set(layer.ttlora_cores) == {"two"} for layer in layers_of(model).values())
        assert model.peft_config.keys() == {"two"}

    def test_save_and_load(self, llama, tmp_path):
        llama.build().save_pretrained(tmp_path / "base")
        model = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
        model.add_adapter(TTLoraConfig(**RANDOM))
        expected = logits(model, llama.inputs)
        model.save_pretrained(tmp_path / "adapter")
        assert {path.name for path in (tmp_path / "adapter").iterdir()} <= {
            "adapter_config.json",
            "adapter_model.safetensors",
            "generation_config.json",
        }
        assert TTLoraConfig.from_pretrained(tmp_path / "adapter").weight_sizes == LLAMA_SIZES
        loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
        loaded.load_adapter(tmp_path / "adapter")
        assert torch.equal(logits(loaded, llama.inputs), expected)
        # the folder of an adapter stands for the model with it, and PEFT reads the same files
        assert torch.equal(logits(AutoModelForCausalLM.from_pretrained(tmp_path / "adapter"), llama.inputs), expected)
        read = PeftModel.from_pretrained(llama.build(), tmp_path / "adapter")
        # without PEFT's wrapper, as here: with it the factors of all layers are built at once, which rounds otherwise
        assert torch.equal(logits(read.base_model.model, llama.inputs), expected)
        torch.testing.assert_close(logits(read, llama.inputs), expected)

    def test_what_peft_saved_is_loaded(self, architectures, tmp_path):
        bert = architectures["bert"]
        bert.build().save_pretrained(tmp_path / "base")
        model = get_peft_model(bert.build(), TTLoraConfig(**RANDOM))
        model.save_pretrained(tmp_path / "adapter")
        loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path / "base")
        loaded.load_adapter(tmp_path / "adapter", adapter_name="one")
        # without PEFT's wrapper, too, which builds the factors of all layers at once and so rounds otherwise
        assert torch.equal(logits(loaded, bert.inputs), logits(model.base_model.model, bert.inputs))
        torch.testing.assert_close(logits(loaded, bert.inputs), logits(model, bert.inputs))

    def test_an_adapter_is_put_into_a_model_without_a_wrapper(self, llama):
        model = inject_adapter_in_model(TTLoraConfig(**RANDOM), llama.build())
        state = get_peft_model_state_dict(model)
        assert set(state) == {f"{name}.ttlora_cores" for name in layers_of(model)}
        other = inject_adapter_in_model(TTLoraConfig(), llama.build(), low_cpu_mem_usage=True)
        set_peft_model_state_dict(other, state, low_cpu_mem_usage=True)
        assert torch.equal(logits(other, llama.inputs), logits(model, llama.inputs))
