"""The command `ttlora inspect`."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PromptTuningConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification

from ttlora import TTLoraConfig
from ttlora.cli.inspect import inspect
from ttlora.errors import UserError


def save(bert: Path, folder: Path, config: Any) -> str:
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_pretrained(bert)
    get_peft_model(model, config).bfloat16().save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def saved(bert: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    config = TTLoraConfig(r=5, target_modules=["query", "value"], task_type="SEQ_CLS", init_weights=False)
    return save(bert, tmp_path_factory.mktemp("saved"), config)


def as_json(folder: str, capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    inspect(folder, json=True)
    result: dict[str, Any] = json.loads(capsys.readouterr().out)
    return result


def test_json(saved: str, bert: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = as_json(saved, capsys)
    assert result["method"] == "tt-lora"
    assert result["base_model"] == str(bert)
    assert result["adapter_parameters"] == 4 * 352
    assert result["other_parameters"] == 66
    assert result["bytes"] == (Path(saved) / "adapter_model.safetensors").stat().st_size
    assert result["dtypes"] == ["BF16"]
    module = result["modules"][0]
    assert module["norm"] > 0
    assert (module["out_features"], module["in_features"], module["shape"]) == (32, 32, [4, 8, 8, 4])
    assert module["ranks"] == [1, 4, 5, 4, 1]
    assert [other["shape"] for other in result["others"]] == [[2], [2, 32]]


def test_the_base_model_need_not_be_there(saved: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = shutil.copytree(saved, tmp_path / "copy")
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps({**config, "base_model_name_or_path": "some-one/model"}))
    module = as_json(str(folder), capsys)["modules"][0]
    assert module["shape"] == [4, 8, 8, 4]
    assert module["norm"] > 0


def test_json_has_no_nan(saved: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = shutil.copytree(saved, tmp_path / "copy")
    tensors = load_file(folder / "adapter_model.safetensors")
    key = next(key for key in tensors if "cores" in key)
    tensors[key][0] = torch.nan
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    assert as_json(str(folder), capsys)["modules"][0]["norm"] is None
    inspect(str(folder))
    assert "Some cores are not finite" in capsys.readouterr().out


def test_the_table(saved: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    inspect(saved)
    text = capsys.readouterr().out
    assert "1,408 parameters in 4 modules" in text
    assert "66 parameters: classifier.bias, classifier.weight" in text
    assert "module in bert.encoder.layer" in text
    assert "0.attention.self.query" in text
    assert "4,8 | 8,4" in text
    assert "of BF16" in text


def test_the_table_of_lora(bert: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = save(bert, tmp_path, LoraConfig(task_type="SEQ_CLS", r=3))
    inspect(folder)
    assert "lora_A 3×32, lora_B 32×3" in capsys.readouterr().out
    assert as_json(folder, capsys)["method"] == "lora"


def test_the_table_of_prompts(bert: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    inspect(save(bert, tmp_path, PromptTuningConfig(task_type="SEQ_CLS", num_virtual_tokens=3)))
    assert "prompt_embeddings 3×32" in capsys.readouterr().out


def test_no_adapter(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="so it is no adapter of PEFT"):
        inspect(str(tmp_path))
