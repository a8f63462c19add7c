"""The folders for PEFT's own comparison: its script reads them, and they train what their page says."""

import json
import re
from pathlib import Path

import pytest
import torch
from peft import PeftConfig, get_peft_model
from transformers import AutoModelForCausalLM

from ttlora import TTLoraConfig
from ttlora.models.skeleton import read_config, without_weights

ROOT = Path(__file__).parents[2] / "benchmarks" / "method_comparison"
FOLDERS = sorted(path for path in (ROOT / "MetaMathQA" / "experiments" / "ttlora").iterdir())
ROW = re.compile(r"^\| `([^`]+)` \|.*\| ([\d,]+) \|$", re.MULTILINE)
STATED = {name: int(count.replace(",", "")) for name, count in ROW.findall((ROOT / "README.md").read_text())}


def test_the_page_names_every_folder():
    assert list(STATED) == [folder.name for folder in FOLDERS]


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_parameters_are_those_of_the_page(folder):
    config = PeftConfig.from_pretrained(str(folder))
    assert isinstance(config, TTLoraConfig)
    assert config.base_model_name_or_path == "meta-llama/Llama-3.2-3B"
    model = without_weights(AutoModelForCausalLM, read_config("llama3.2-3b"))
    with torch.device("meta"):
        trainable, whole = get_peft_model(model, config, autocast_adapter_dtype=True).get_nb_trainable_parameters()
    assert (trainable, whole) == (STATED[folder.name], 3_212_749_824 + STATED[folder.name])


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_training_parameters_replace_pefts_whole(folder):
    # PEFT's script puts these in the place of its own optimizer_kwargs, and does not add the one to the other
    settings = json.loads((folder / "training_params.json").read_text())
    assert settings == {"optimizer_kwargs": {"lr": 1e-3, "weight_decay": 0.1}}
