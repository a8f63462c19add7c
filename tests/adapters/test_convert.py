"""A LoRA adapter becomes a TT-LoRA adapter with the same update, or one whose error is told."""

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, TaskType, get_peft_model
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import (
    AutoModel,
    AutoModelForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
)

from tests.adapters.answers import assert_refused, causal, outputs
from ttlora import TTLoraConfig
from ttlora.adapters.convert import from_lora
from ttlora.adapters.read import read_adapter
from ttlora.adapters.write import write_adapter
from ttlora.errors import UserError
from ttlora.tuners.tt_lora import TTLoraLayer


def lora(base: Any, folder: Path, **options: Any) -> PeftModel:
    torch.manual_seed(0)
    model = get_peft_model(base, LoraConfig(init_lora_weights=False, **options))
    model.save_pretrained(folder)
    return model


def convert(folder: Path, output: Path, **options: Any) -> Any:
    result = from_lora(read_adapter(folder), **options)
    write_adapter(output, result.config, result.tensors)
    return result


@pytest.mark.parametrize(
    ("options", "flags"),
    [
        ({"r": 4, "lora_alpha": 3}, {}),
        ({"r": 4, "use_rslora": True, "layers_to_transform": [1]}, {}),
        ({"r": 3, "rank_pattern": {"q_proj": 6}, "alpha_pattern": {"v_proj": 5}}, {}),
        ({"r": 2, "target_modules": r".*\.1\.self_attn\.q_proj"}, {"shape": [8, 16, 2, 4]}),  # not aligned
        ({"r": 4, "target_modules": ["q_proj", "up_proj"]}, {"shape": {"q_proj": [32, 32], "up_proj": [6, 8, 4, 8]}}),
    ],
)
def test_without_a_bound_nothing_is_lost(llama: Path, tmp_path: Path, options: Any, flags: Any) -> None:
    model = lora(causal(llama), tmp_path / "lora", task_type="CAUSAL_LM", **options)
    result = convert(tmp_path / "lora", tmp_path / "tt", **flags)
    assert result.relative_error < 1e-6
    assert {module.name for module in result.modules} == set(read_adapter(tmp_path / "lora").modules)
    adapted = PeftModel.from_pretrained(causal(llama), tmp_path / "tt")
    assert isinstance(adapted.peft_config["default"], TTLoraConfig)
    wanted, base = outputs(model), outputs(causal(llama))
    assert (wanted - base).norm() > 0.01 * base.norm()
    assert (outputs(adapted) - wanted).abs().max() <= 1e-5 * wanted.abs().max()


def test_conv1d(tmp_path: Path) -> None:
    torch.manual_seed(0)
    base = GPT2LMHeadModel(GPT2Config(n_embd=16, n_layer=1, n_head=2, vocab_size=24))
    state = {key: tensor.clone() for key, tensor in base.state_dict().items()}
    wanted = outputs(lora(base, tmp_path / "lora", target_modules=["c_attn"], r=2, fan_in_fan_out=True))
    convert(tmp_path / "lora", tmp_path / "tt")
    fresh = GPT2LMHeadModel(GPT2Config(n_embd=16, n_layer=1, n_head=2, vocab_size=24))
    fresh.load_state_dict(state)
    found = outputs(PeftModel.from_pretrained(fresh, tmp_path / "tt"))
    assert (found - wanted).abs().max() <= 1e-5 * wanted.abs().max()


@pytest.mark.parametrize("flags", [{"r": 3}, {"tolerance": 0.5}, {"r": 3, "dtype": torch.bfloat16}])
def test_the_error_that_is_told(llama: Path, tmp_path: Path, flags: dict[str, Any]) -> None:
    model = lora(causal(llama), tmp_path / "lora", task_type="CAUSAL_LM")
    result = convert(tmp_path / "lora", tmp_path / "tt", **flags)
    adapted = PeftModel.from_pretrained(causal(llama), tmp_path / "tt")
    layers = {name: layer for name, layer in adapted.named_modules() if isinstance(layer, TTLoraLayer)}
    for module in result.modules:
        wanted = model.get_submodule(f"base_model.model.{module.name}").get_delta_weight("default")
        found = layers[f"base_model.model.{module.name}"].get_delta_weight("default")
        error = ((wanted - found).norm() / wanted.norm()).item()
        assert module.relative_error == pytest.approx(error, rel=1e-3)
        assert 0.05 < error < 1
        assert module.parameters_before == sum(wanted.shape) * 8
        assert max(module.shape.ranks) <= flags.get("r", 32)
        assert error <= flags.get("tolerance", 1)
    if "r" in flags:
        assert result.config.r == flags["r"]
        assert not result.config.rank_pattern


def test_a_trained_head_goes_along(bert: Path, tmp_path: Path) -> None:
    base = AutoModelForSequenceClassification.from_pretrained(bert, num_labels=3)
    model = lora(base, tmp_path / "lora", task_type=TaskType.SEQ_CLS)
    convert(tmp_path / "lora", tmp_path / "tt")
    fresh = AutoModelForSequenceClassification.from_pretrained(bert, num_labels=3)
    wanted = outputs(model)
    assert (outputs(PeftModel.from_pretrained(fresh, tmp_path / "tt")) - wanted).abs().max() <= 1e-5


def test_it_trains_on(bert: Path, tmp_path: Path) -> None:
    lora(AutoModel.from_pretrained(bert), tmp_path / "lora", r=2)
    convert(tmp_path / "lora", tmp_path / "tt", r=3)
    model = PeftModel.from_pretrained(AutoModel.from_pretrained(bert), tmp_path / "tt", is_trainable=True)
    sizes = [weight.square().mean().sqrt().item() for name, weight in model.named_parameters() if "ttlora" in name]
    assert len(sizes) == 4
    assert all(0.001 < size < 10 for size in sizes), "neither tiny nor huge"


@pytest.mark.parametrize(
    ("options", "part"),
    [
        ({"use_dora": True}, "use_dora=True"),
        ({"lora_bias": True}, "lora_bias=True"),
        ({"bias": "all"}, "bias='all'"),
        ({"target_modules": ["word_embeddings"]}, "word_embeddings' has lora_embedding_"),
        ({"trainable_token_indices": {"word_embeddings": [0, 1]}}, "trainable_token_indices="),
    ],
)
def test_variants_that_are_no_plain_lora(bert: Path, tmp_path: Path, options: dict[str, Any], part: str) -> None:
    lora(AutoModel.from_pretrained(bert), tmp_path, **options)
    assert_refused(from_lora, tmp_path, part)


def test_a_start_that_changes_the_base_weights(bert: Path, tmp_path: Path) -> None:
    get_peft_model(AutoModel.from_pretrained(bert), LoraConfig(init_lora_weights="pissa")).save_pretrained(tmp_path)
    assert_refused(from_lora, tmp_path, "init_lora_weights='pissa', which changes the base weights too")


def test_another_method(bert: Path, tmp_path: Path) -> None:
    get_peft_model(AutoModel.from_pretrained(bert), TTLoraConfig()).save_pretrained(tmp_path)
    assert_refused(from_lora, tmp_path, "is an adapter of TTLORA, and ttlora import takes those of LORA")


KEY = "base_model.model.encoder.layer.0.attention.self.query.lora_A.weight"


@pytest.mark.parametrize(
    ("tensor", "part"),
    [
        (None, "has no lora_A.weight"),
        (torch.ones(8, 32, 1, 1), "not two matrices: only linear layers"),
        (torch.ones(8, 32, dtype=torch.int8), "no floating-point numbers"),
        (torch.ones(7, 32), "have the ranks 7 and 8, and the config says 8"),
        (torch.full((8, 32), torch.nan), "are not finite"),
    ],
)
def test_damaged_factors(bert: Path, tmp_path: Path, tensor: torch.Tensor | None, part: str) -> None:
    lora(AutoModel.from_pretrained(bert), tmp_path)
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    del tensors[KEY]
    save_file(tensors if tensor is None else {**tensors, KEY: tensor}, tmp_path / "adapter_model.safetensors")
    assert_refused(from_lora, tmp_path, "layer.0.attention.self.query", part)


def test_a_shape_that_does_not_fit(bert: Path, tmp_path: Path) -> None:
    lora(AutoModel.from_pretrained(bert), tmp_path)
    with pytest.raises(UserError, match="has the product 15"):
        from_lora(read_adapter(tmp_path), shape=[3, 5])


@pytest.mark.parametrize("flags", [{}, {"tolerance": 1e-3}])
@pytest.mark.parametrize(("sizes", "r"), [((16, 6), 8), ((6, 16), 8), ((32, 32), 40)])
def test_a_rank_above_that_of_the_weight(tmp_path: Path, sizes: Any, r: int, flags: Any) -> None:
    model = get_peft_model(
        nn.Sequential(nn.Linear(*sizes)), LoraConfig(r=r, target_modules=["0"], init_lora_weights=False)
    )
    model.save_pretrained(tmp_path / "lora")
    result = convert(tmp_path / "lora", tmp_path / "tt", **flags)
    loaded = PeftModel.from_pretrained(nn.Sequential(nn.Linear(*sizes)), tmp_path / "tt")
    found, wanted = (each.base_model.model[0].get_delta_weight("default") for each in (loaded, model))
    torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-3)
    assert max(result.modules[0].shape.ranks) <= min(sizes)
