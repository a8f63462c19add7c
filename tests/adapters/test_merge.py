"""A merged model is one of transformers alone, and answers as the adapted one did."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PromptTuningConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    MixtralConfig,
    MixtralForCausalLM,
)

from tests.adapters.answers import of_bert, of_llama, outputs
from ttlora import TTLoraConfig
from ttlora.adapters.base_model import load_base_of
from ttlora.adapters.merge import merge_adapter
from ttlora.adapters.read import read_adapter
from ttlora.adapters.round import round_adapter
from ttlora.adapters.write import write_adapter
from ttlora.errors import UserError


def save(base: Any, folder: Path, config: Any) -> torch.Tensor:
    """Save the adapter, and return what the adapted model answers."""
    torch.manual_seed(0)
    model = get_peft_model(base, config)
    for name, weight in model.named_parameters():
        if weight.requires_grad and "classifier" in name:
            weight.data.normal_()
    model.save_pretrained(folder)
    return outputs(model)


def merge(folder: Path, model: Path, output: Path) -> Any:
    adapter = read_adapter(folder)
    base, random = load_base_of(adapter, str(model), local_files_only=True)
    assert not random
    merged = merge_adapter(adapter, base)
    merged.save_pretrained(output)
    return merged


def assert_near(found: torch.Tensor, wanted: torch.Tensor) -> None:
    assert (found - wanted).abs().max() <= 1e-5 * wanted.abs().max()


@pytest.mark.parametrize(
    "config",
    [
        TTLoraConfig(task_type="CAUSAL_LM", init_weights=False),
        of_llama(init_weights=False, r=3, shape_pattern={"q_proj": [8, 16, 2, 4]}),
        LoraConfig(task_type="CAUSAL_LM", init_lora_weights=False),
        LoraConfig(init_lora_weights=False, use_dora=True),
    ],
)
def test_a_causal_model(llama: Path, tmp_path: Path, config: Any) -> None:
    AutoModelForCausalLM.from_pretrained(llama, dtype=torch.float32).save_pretrained(tmp_path / "base")
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    before = outputs(base)
    wanted = save(base, tmp_path / "adapter", config)
    assert (wanted - before).norm() > 0.01 * before.norm()
    merge(tmp_path / "adapter", tmp_path / "base", tmp_path / "merged")
    assert_near(outputs(AutoModelForCausalLM.from_pretrained(tmp_path / "merged")), wanted)


def test_the_number_format_of_the_base_stays(llama: Path, tmp_path: Path) -> None:
    base = AutoModelForCausalLM.from_pretrained(llama)
    assert base.dtype == torch.bfloat16
    save(base, tmp_path / "adapter", of_llama(task_type="CAUSAL_LM", init_weights=False))
    merge(tmp_path / "adapter", llama, tmp_path / "merged")
    before, after = load_file(llama / "model.safetensors"), load_file(tmp_path / "merged" / "model.safetensors")
    assert before.keys() == after.keys()
    for key, tensor in after.items():
        assert tensor.dtype == torch.bfloat16
        assert torch.equal(tensor, before[key]) == ("q_proj" not in key and "v_proj" not in key)


@pytest.mark.parametrize(
    ("auto_class", "config"),
    [
        (AutoModelForSequenceClassification, TTLoraConfig(task_type="SEQ_CLS", init_weights=False)),
        (AutoModelForTokenClassification, LoraConfig(task_type="TOKEN_CLS", init_lora_weights=False)),
    ],
)
def test_a_trained_head_says_how_many_labels_there_are(
    bert: Path, tmp_path: Path, auto_class: Any, config: Any
) -> None:
    torch.manual_seed(0)
    config.modules_to_save = ["classifier", "pooler"] if auto_class is AutoModelForSequenceClassification else None
    wanted = save(auto_class.from_pretrained(bert, num_labels=5), tmp_path / "adapter", config)
    merged = merge(tmp_path / "adapter", bert, tmp_path / "merged")
    assert merged.config.num_labels == 5
    found = auto_class.from_pretrained(tmp_path / "merged")
    assert_near(outputs(found), wanted)


def test_trained_biases(bert: Path, tmp_path: Path) -> None:
    model = get_peft_model(AutoModel.from_pretrained(bert), TTLoraConfig(init_weights=False, bias="all"))
    for name, weight in model.named_parameters():
        if weight.requires_grad and name.endswith("bias"):
            weight.data.normal_()
    wanted = outputs(model)
    model.save_pretrained(tmp_path / "adapter")
    merge(tmp_path / "adapter", bert, tmp_path / "merged")
    assert_near(outputs(AutoModel.from_pretrained(tmp_path / "merged")), wanted)


def test_the_class_that_was_wrapped(bert: Path, tmp_path: Path) -> None:
    base = AutoModelForMaskedLM.from_pretrained(bert)
    base.save_pretrained(tmp_path / "base")
    save(base, tmp_path / "adapter", TTLoraConfig(init_weights=False))
    merged = merge(tmp_path / "adapter", tmp_path / "base", tmp_path / "merged")
    assert type(merged).__name__ == "BertForMaskedLM"


def test_weights_that_nobody_brings_along_are_named(bert: Path, tmp_path: Path) -> None:
    base = AutoModelForMaskedLM.from_pretrained(bert)
    save(base, tmp_path, TTLoraConfig(init_weights=False))
    _, random = load_base_of(read_adapter(tmp_path), str(bert), local_files_only=True)
    assert "cls.predictions.transform.dense.weight" in random
    assert not [name for name in random if name.startswith("bert.")]


def refused(folder: Path, model: Path, *parts: str) -> None:
    adapter = read_adapter(folder)
    with pytest.raises(UserError) as error:
        merge_adapter(adapter, load_base_of(adapter, str(model), local_files_only=True)[0])
    assert "\n" not in str(error.value)
    for part in parts:
        assert part in str(error.value)


@pytest.fixture
def adapter(bert: Path, tmp_path: Path) -> Path:
    base = AutoModelForSequenceClassification.from_pretrained(bert)
    save(base, tmp_path / "adapter", of_bert(task_type="SEQ_CLS", init_weights=False))
    return tmp_path / "adapter"


@pytest.mark.parametrize(
    ("sizes", "parts"),
    [
        ({"hidden_size": 64}, ["no place for 'classifier.weight' of sizes [2, 32], trained"]),
        ({"num_hidden_layers": 1}, ["layer.1.attention.self.query"]),
        ({"num_hidden_layers": 3}, ["it has no bert.encoder.layer.2.attention.self.query.ttlora_cores, which"]),
    ],
)
def test_another_base_model(adapter: Path, bert: Path, tmp_path: Path, sizes: Any, parts: list[str]) -> None:
    config = AutoModel.from_pretrained(bert).config
    config.update(sizes)
    AutoModel.from_config(config).save_pretrained(tmp_path / "other")
    refused(adapter, tmp_path / "other", f"does not fit {tmp_path / 'other'}", *parts)


def test_a_base_model_that_cannot_be_read(adapter: Path, bert: Path, tmp_path: Path) -> None:
    shutil.copytree(bert, tmp_path / "base")
    weights = tmp_path / "base" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    refused(adapter, tmp_path / "base", f"model {tmp_path / 'base'} cannot be loaded")


def test_cores_that_are_not_finite(adapter: Path, bert: Path) -> None:
    tensors = load_file(adapter / "adapter_model.safetensors")
    next(tensor for key, tensor in tensors.items() if "ttlora" in key)[0] = torch.nan
    save_file(tensors, adapter / "adapter_model.safetensors")
    refused(adapter, bert, "cannot be merged", "not finite")


def test_prompts_cannot_be_merged(bert: Path, tmp_path: Path) -> None:
    base = AutoModelForSequenceClassification.from_pretrained(bert)
    config = PromptTuningConfig(task_type="SEQ_CLS", num_virtual_tokens=3)
    get_peft_model(base, config).save_pretrained(tmp_path)
    refused(tmp_path, bert, "is an adapter of PROMPT_TUNING, which updates no weights")


def test_an_update_of_tied_embeddings_alone(llama: Path, tmp_path: Path) -> None:
    """The output layer keeps the weight it had, and the saved config says that the two are no longer tied."""
    shutil.copytree(llama, tmp_path / "base")
    base = AutoModelForCausalLM.from_pretrained(llama, dtype=torch.float32, tie_word_embeddings=True)
    base.save_pretrained(tmp_path / "base")
    config = TTLoraConfig(task_type="CAUSAL_LM", init_weights=False, target_modules=["embed_tokens"])
    wanted = save(base, tmp_path / "adapter", config)
    merge(tmp_path / "adapter", tmp_path / "base", tmp_path / "merged")
    assert not json.loads((tmp_path / "merged" / "config.json").read_text())["tie_word_embeddings"]
    assert_near(outputs(AutoModelForCausalLM.from_pretrained(tmp_path / "merged")), wanted)


@pytest.mark.parametrize(
    "options",
    [
        {"target_parameters": ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"], "target_modules": ["q_proj"]},
        {"target_modules": ["embed_tokens", "lm_head"]},
    ],
)
def test_other_layers_than_linear_ones(tmp_path: Path, options: dict[str, Any]) -> None:
    """Rounded by nothing and merged, experts and embeddings answer as before."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_local_experts": 4}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1}
    MixtralForCausalLM(MixtralConfig(vocab_size=24, **sizes, **heads)).save_pretrained(tmp_path / "base")
    base = MixtralForCausalLM.from_pretrained(tmp_path / "base")
    wanted = save(base, tmp_path / "adapter", TTLoraConfig(task_type="CAUSAL_LM", init_weights=False, **options))
    same = round_adapter(read_adapter(tmp_path / "adapter"), tolerance=1e-9)
    assert same.relative_error < 1e-6
    write_adapter(tmp_path / "same", same.config, same.tensors)
    merge(tmp_path / "same", tmp_path / "base", tmp_path / "merged")
    assert_near(outputs(MixtralForCausalLM.from_pretrained(tmp_path / "merged")), wanted)
