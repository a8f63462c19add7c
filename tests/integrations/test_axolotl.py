"""TT-LoRA in Axolotl, through Axolotl's own functions and commands; runs where Axolotl is installed."""

# mypy: disable-error-code="import-not-found"
import os
import subprocess
import sys
from pathlib import Path

os.environ["AXOLOTL_DO_NOT_TRACK"] = "1"

import pytest
import torch
import yaml
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM

pytest.importorskip("axolotl", reason="Axolotl is not installed")

from axolotl.cli.config import load_cfg
from axolotl.cli.utils import load_model_and_tokenizer
from axolotl.loaders.adapter import load_adapter

from tests.conftest import sentiment_rows, write_jsonl
from tests.ecosystem.conftest import logits
from ttlora import TTLoraConfig, TTLoraModel


@pytest.fixture
def recipe(llama32, tmp_path):
    """Writes a YAML that trains the tiny Llama, with some keys changed."""
    rows = [{"text": row["sentence"]} for row in sentiment_rows(32, 0)]
    keys = {
        "plugins": ["ttlora.integrations.axolotl.TTLoraPlugin"],
        "adapter": "ttlora",
        "base_model": str(llama32),
        "special_tokens": {"pad_token": "[PAD]"},
        "datasets": [
            {"path": str(write_jsonl(tmp_path / "rows.jsonl", rows)), "ds_type": "json", "type": "completion"}
        ],
        "dataset_prepared_path": str(tmp_path / "prepared"),
        "output_dir": str(tmp_path / "trained"),
        "sequence_len": 32,
        "micro_batch_size": 4,
        "gradient_accumulation_steps": 1,
        "max_steps": 3,
        "learning_rate": 1e-2,
        "optimizer": "adamw_torch",
        "lr_scheduler": "constant",
        "logging_steps": 1,
        "save_strategy": "no",
        "bf16": False,
        "fp16": False,
    }

    def write(**changed):
        path = tmp_path / "recipe.yml"
        path.write_text(yaml.safe_dump({**keys, **changed}), "utf-8")
        return str(path)  # Axolotl takes no Path

    return write


@pytest.fixture
def load(recipe):
    """The adapted model that Axolotl makes of a YAML."""
    return lambda **changed: load_model_and_tokenizer(cfg=load_cfg(recipe(**changed)))[0]


def adapted(model):
    layers = [name for name, layer in model.named_modules() if type(layer).__name__ == "TTLoraLinear"]
    return sorted(name.removeprefix("base_model.model.model.layers.") for name in layers)


def test_what_the_yaml_says(load):
    model = load(
        ttlora_r=3,
        ttlora_alpha=6,
        ttlora_shape_pattern={"o_proj": [32, 32]},
        ttlora_rank_pattern={"o_proj": 2},
        ttlora_scaling="alpha/sqrt(r)",
        ttlora_init_weights=False,
        ttlora_core_size=0.1,
        lora_target_modules=["q_proj", "o_proj"],
        peft_layers_to_transform=[1],
        lora_dropout=0.1,
        lora_modules_to_save=["lm_head"],
    )
    assert isinstance(model.base_model, TTLoraModel)
    config = model.peft_config["default"]
    assert adapted(model) == ["1.self_attn.o_proj", "1.self_attn.q_proj"]
    assert (config.r, config.alpha, config.scaling, config.core_size) == (3, 6, "alpha/sqrt(r)", 0.1)
    assert (config.dropout, config.modules_to_save, config.task_type) == (0.1, ["lm_head"], "CAUSAL_LM")
    assert config.init_weights is False
    assert config.shape_pattern["o_proj"] == [32, 32]
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert {"ttlora_cores" in name or "modules_to_save" in name for name in trained} == {True}


def test_what_the_yaml_does_not_say(load):
    model = load()
    names = [*(f"mlp.{name}_proj" for name in ("down", "gate", "up")), "self_attn.o_proj", "self_attn.v_proj"]
    assert adapted(model) == [f"{layer}.{name}" for layer in (0, 1) for name in names]
    plain, config = TTLoraConfig(), model.peft_config["default"]
    assert all(
        getattr(config, name) == getattr(plain, name) for name in ("r", "alpha", "scaling", "core_size", "dropout")
    )


def test_all_linear_layers_and_a_null(load):
    model = load(lora_target_linear=True, ttlora_core_size=None, peft_use_rslora=True)
    assert len(adapted(model)) == 14
    assert model.peft_config["default"].scaling == "alpha/sqrt(r)"
    assert model.peft_config["default"].core_size is None


@pytest.mark.parametrize(("bits", "kind"), [(4, "Linear4bit"), (8, "Linear8bitLt")])
def test_a_quantised_base(load, bits, kind):
    model = load(**{f"load_in_{bits}bit": True}, lora_target_linear=True, model_kwargs={"use_safetensors": True})
    layers = [layer for layer in model.modules() if type(layer).__name__ == "TTLoraLinear"]
    assert {type(layer.base_layer).__name__ for layer in layers} == {kind}
    model(torch.tensor([[4, 5, 6]]), labels=torch.tensor([[4, 5, 6]])).loss.backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"ttlora_r": 0}, "r=0 is neither a positive integer"),
        ({"ttlora_rank": 3}, "ttlora_rank is no key of the plugin, which has ttlora_r, "),
        ({"ttlora_shape": [32, "x"]}, "ttlora_shape"),
        ({"ttlora_scaling": "beta"}, "scaling='beta' is not one of"),
        ({"ttlora_core_size": "odd"}, "core_size='odd' is not"),
        ({"lora_r": 8}, "for TT-LoRA write ttlora_r"),
        ({"lora_alpha": 16}, "for TT-LoRA write ttlora_alpha"),
        ({"peft_use_dora": True}, "peft_use_dora is a key for LoRA: for TT-LoRA leave it out"),
        ({"lora_mlp_kernel": True}, "for TT-LoRA leave it out"),
        ({"merge_method": "memory_efficient"}, "merge_method: memory_efficient merges LoRA alone"),
        ({"relora": True, "jagged_restart_steps": 2}, "must support ReLoRA"),
    ],
)
def test_what_is_refused_before_a_model_is_loaded(recipe, keys, message):
    with pytest.raises(ValueError, match="(?s)" + message.replace("(", r"\(")):
        load_cfg(recipe(**keys))


def test_other_adapters_are_left_to_axolotl(load):
    model = load(adapter="lora", lora_r=4, lora_alpha=8, lora_target_modules=["q_proj"], lora_mlp_kernel=False)
    assert isinstance(model.peft_config["default"], LoraConfig)


def test_a_folder_with_another_adapter(load, llama32, tmp_path):
    base = AutoModelForCausalLM.from_pretrained(llama32)
    get_peft_model(base, LoraConfig(target_modules=["q_proj"])).save_pretrained(tmp_path / "lora")
    with pytest.raises(ValueError, match="has an adapter of LORA, not of TT-LoRA"):
        load(lora_model_dir=str(tmp_path / "lora"))


def test_the_config_alone(recipe, llama32):
    base = AutoModelForCausalLM.from_pretrained(llama32)
    cfg = load_cfg(recipe(ttlora_r=3))
    model, config = load_adapter(base, cfg, "ttlora", config_only=True)
    assert model is None
    assert isinstance(config, TTLoraConfig)
    assert config.r == 3
    cfg.lora_model_dir = "somewhere"
    with pytest.raises(ValueError, match="always trains a new adapter"):
        load_adapter(base, cfg, "ttlora", config_only=True)


@pytest.mark.slow
def test_train_resume_and_merge_by_commands(recipe, llama32, tmp_path):
    def run(command, path, *flags):
        done = subprocess.run(
            [Path(sys.executable).with_name("axolotl"), command, path, *flags],
            env=os.environ | {"CUDA_VISIBLE_DEVICES": ""},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr

    def trained(folder):
        return PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(llama32), folder)

    first, second = tmp_path / "trained", tmp_path / "resumed"
    run("train", recipe(ttlora_r=3), "--launcher", "python")
    said = logits(trained(first))
    assert trained(first).peft_config["default"].r == 3
    assert not torch.equal(said, logits(AutoModelForCausalLM.from_pretrained(llama32)))

    # no step would leave the adapter as it was: a rate of 0 shows that it was loaded, another one that it is trained
    resumed = {"lora_model_dir": str(first), "output_dir": str(second), "gradient_checkpointing": True}
    run("train", recipe(**resumed, learning_rate=0.0), "--launcher", "python")
    assert torch.equal(logits(trained(second)), said)
    run("train", recipe(**resumed), "--launcher", "python")
    assert not torch.equal(logits(trained(second)), said)
    assert trained(second).peft_config["default"].r == 3

    run("merge-lora", recipe(ttlora_r=3))
    merged = AutoModelForCausalLM.from_pretrained(first / "merged", dtype=torch.float32)
    torch.testing.assert_close(logits(merged), said, rtol=1e-4, atol=1e-4)
