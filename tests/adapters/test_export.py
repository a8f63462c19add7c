"""An exported adapter is a plain LoRA adapter with the same update, in the form that serving engines read."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoModelForSequenceClassification

from tests.adapters.answers import assert_refused, causal, of_bert, of_llama, outputs
from ttlora import TTLoraConfig
from ttlora.adapters.export import to_lora
from ttlora.adapters.read import read_adapter
from ttlora.adapters.write import write_adapter
from ttlora.errors import UserError
from ttlora.tuners.tt_lora import saved_update


def export(model: PeftModel, folder: Path, dtype: torch.dtype = torch.float32) -> Path:
    model.save_pretrained(folder / "tt")
    lora = to_lora(read_adapter(folder / "tt"), dtype)
    write_adapter(folder / "lora", lora.config, lora.tensors)
    return folder / "lora"


def assert_same_outputs(adapted: PeftModel, base: Any, folder: Path, tolerance: float = 1e-5) -> None:
    wanted, before = outputs(adapted), outputs(base)
    assert (wanted - before).norm() > 0.01 * before.norm(), "the update has to matter"
    found = outputs(PeftModel.from_pretrained(base, folder))
    assert (found - wanted).abs().max() <= tolerance * wanted.abs().max()


def config_of(folder: Path) -> dict[str, Any]:
    values: dict[str, Any] = json.loads((folder / "adapter_config.json").read_text())
    return values


@pytest.mark.parametrize(
    ("options", "r", "targets"),
    [
        ({}, 5, ["q_proj", "v_proj"]),
        ({"shape": [8, 16, 2, 4], "target_modules": ["q_proj"]}, 20, ["q_proj"]),  # not aligned: its true rank
        ({"rank_pattern": {"q_proj": 7}, "r": 2, "alpha_pattern": {"v_proj": 1.5}}, 7, ["q_proj", "v_proj"]),
        ({"shape": [8, 4, 8, 4], "r": [1, 2, 3], "core_size": None, "target_modules": ["q_proj"]}, 2, ["q_proj"]),
        ({"scaling": "alpha/r", "layers_to_transform": [1]}, 5, ["q_proj", "v_proj"]),
        ({"target_modules": ["self_attn.q_proj"]}, 5, [f"model.layers.{n}.self_attn.q_proj" for n in (0, 1)]),
        ({"target_modules": r".*\.1\.self_attn\.q_proj"}, 5, ["model.layers.1.self_attn.q_proj"]),
    ],
)
def test_logits_of_a_llama(
    llama: Path,
    tmp_path: Path,
    options: dict[str, Any],
    r: int,
    targets: list[str],
    recwarn: pytest.WarningsRecorder,
) -> None:
    torch.manual_seed(0)
    adapted = get_peft_model(causal(llama), of_llama(task_type="CAUSAL_LM", init_weights=False, **options))
    folder = export(adapted, tmp_path)
    assert_same_outputs(adapted, causal(llama), folder)
    assert not [warning for warning in recwarn if "missing adapter keys" in str(warning.message)]
    config = config_of(folder)
    assert (config["r"], config["lora_alpha"], config["target_modules"]) == (r, r, targets)


def test_outputs_of_a_bert(bert: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = TTLoraConfig(target_modules=["query", "dense"], r=3, init_weights=False)
    adapted = get_peft_model(AutoModel.from_pretrained(bert), config)
    assert_same_outputs(adapted, AutoModel.from_pretrained(bert), export(adapted, tmp_path))


def test_an_adapter_in_bfloat16(llama: Path, tmp_path: Path) -> None:
    """The cores as they were saved are what counts; the factors are computed in float32."""
    torch.manual_seed(0)
    config = TTLoraConfig(task_type="CAUSAL_LM", init_weights=False)
    adapted = get_peft_model(causal(llama), config)
    for name, cores in adapted.named_parameters():
        if "ttlora" in name:
            cores.data = cores.data.bfloat16()
    folder = export(adapted, tmp_path)
    assert {tensor.dtype for tensor in load_file(tmp_path / "tt" / "adapter_model.safetensors").values()} == {
        torch.bfloat16
    }
    assert_same_outputs(adapted, causal(llama), folder)


def test_the_form_that_serving_engines_read(llama: Path, tmp_path: Path) -> None:
    config = of_llama(task_type="CAUSAL_LM", init_weights=False, rank_pattern={"v_proj": 2})
    folder = export(get_peft_model(causal(llama), config), tmp_path, torch.float16)
    values = config_of(folder)
    assert values["peft_type"] == "LORA"
    assert values["base_model_name_or_path"] == str(llama)
    assert isinstance(values["r"], int)
    assert isinstance(values["lora_alpha"], int)
    for name in ("rank_pattern", "alpha_pattern", "modules_to_save", "use_rslora", "use_dora", "lora_bias"):
        assert not values[name]
    assert values["bias"] == "none"
    tensors = load_file(folder / "adapter_model.safetensors")
    for layer in (0, 1):
        for name, rows in (("q_proj", 32), ("v_proj", 16)):
            module = f"base_model.model.model.layers.{layer}.self_attn.{name}"
            assert tensors.pop(f"{module}.lora_A.weight").shape == (5, 32)
            B = tensors.pop(f"{module}.lora_B.weight")
            assert B.shape == (rows, 5)
            assert B.dtype == torch.float16
            assert B[:, 2 if name == "v_proj" else 5 :].abs().sum() == 0
    assert not tensors
    assert sorted(file.name for file in folder.iterdir()) == [
        "README.md",
        "adapter_config.json",
        "adapter_model.safetensors",
    ]
    card = (folder / "README.md").read_text()
    assert "import ttlora" not in card


def test_a_trained_head_cannot_go(bert: Path, tmp_path: Path) -> None:
    model = AutoModelForSequenceClassification.from_pretrained(bert)
    get_peft_model(model, TTLoraConfig(task_type="SEQ_CLS")).save_pretrained(tmp_path)
    assert_refused(to_lora, tmp_path, "classifier.bias, classifier.weight", "ttlora merge")


def test_trained_biases_cannot_go(bert: Path, tmp_path: Path) -> None:
    model = get_peft_model(AutoModel.from_pretrained(bert), of_bert(bias="all"))
    model.save_pretrained(tmp_path)
    assert_refused(to_lora, tmp_path, "encoder.layer.0.attention.output.dense.bias", "more; ttlora merge")


def test_a_lora_adapter_is_one_already(bert: Path, tmp_path: Path) -> None:
    get_peft_model(AutoModel.from_pretrained(bert), LoraConfig()).save_pretrained(tmp_path)
    assert_refused(to_lora, tmp_path, "is an adapter of LORA, and ttlora export takes those of TT-LoRA")


def forge(folder: Path, sizes: dict[str, list[int]], **values: Any) -> Path:
    """The folder of an adapter of which there is no model."""
    config = TTLoraConfig(target_modules=sorted({name.rpartition(".")[2] for name in sizes}), weight_sizes=sizes)
    for key, value in values.items():
        setattr(config, key, value)
    tensors = {
        f"base_model.model.{name}.ttlora_cores": torch.randn(saved_update(config, name).shape.parameters)
        for name in sizes
    }
    write_adapter(folder, config, tensors)
    return folder


@pytest.mark.parametrize("kind", ["embedding", "convolution", "attention", "parameter"])
def test_other_layers_than_linear_ones_cannot_go(tmp_path: Path, kind: str) -> None:
    folder = forge(tmp_path, {"model.part": [8, 9], "model.q_proj": [8, 8]}, weight_kinds={"part": kind})
    assert_refused(to_lora, folder, "'model.part' cannot go", f"of the kind '{kind}'", "ttlora merge")


def test_experts_cannot_go(tmp_path: Path) -> None:
    assert_refused(
        to_lora,
        forge(tmp_path, {"layers.0.experts": [4, 8, 8]}),
        "'layers.0.experts' cannot go",
        "'stack of 4 experts'",
    )


def test_cores_that_are_not_finite(tmp_path: Path) -> None:
    folder = forge(tmp_path / "tt", {"q_proj": [8, 8]})
    tensors = load_file(folder / "adapter_model.safetensors")
    next(iter(tensors.values()))[0] = torch.inf
    save_file(tensors, folder / "adapter_model.safetensors")
    lora = to_lora(read_adapter(folder))
    with pytest.raises(UserError, match=r"'q_proj\.lora_.\.weight' has entries that are not finite in float32"):
        write_adapter(tmp_path / "lora", lora.config, lora.tensors)
    assert not (tmp_path / "lora").exists()


def test_an_adapter_of_the_size_of_llama2_7b(tmp_path: Path) -> None:
    sizes = {f"model.layers.{n}.self_attn.{part}": [4096, 4096] for n in range(32) for part in ("q_proj", "v_proj")}
    folder = forge(tmp_path / "tt", sizes, shape=[16] * 6, r=5)
    lora = to_lora(read_adapter(folder))
    assert len(lora.tensors) == 128
    assert {tuple(tensor.shape) for tensor in lora.tensors.values()} == {(5, 4096), (4096, 5)}
