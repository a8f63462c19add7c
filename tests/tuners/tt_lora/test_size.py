import pytest
import torch
from peft import get_peft_model, get_peft_model_state_dict
from safetensors.torch import save_file
from transformers import LlamaConfig, LlamaForCausalLM

from ttlora import TTLoraConfig

PAPER = {"target_modules": ["q_proj", "v_proj"], "r": 5}


@pytest.mark.parametrize(
    ("options", "layers", "parameters"), [(PAPER, 64, 112_640), ({}, 160, 59_264)], ids=["paper", "default"]
)
def test_the_file_of_a_llama2_7b_adapter_is_little_more_than_its_parameters(tmp_path, options, layers, parameters):
    with torch.device("meta"):
        base = LlamaForCausalLM(LlamaConfig(vocab_size=32000, hidden_size=4096, num_hidden_layers=32))
        model = get_peft_model(base, TTLoraConfig(task_type="CAUSAL_LM", **options))
    state = get_peft_model_state_dict(model)
    assert len(state) == layers
    assert sum(tensor.numel() for tensor in state.values()) == parameters
    dims = model.peft_config["default"].shape_pattern or {"all": model.peft_config["default"].shape}
    assert all(dims[name] == [16] * 6 for name in dims if name in ("all", "v_proj", "o_proj"))

    # as PEFT writes it, in bf16; the header tells name, type, shape and place of each tensor
    half = {name: torch.zeros(tensor.shape, dtype=torch.bfloat16) for name, tensor in state.items()}
    save_file(half, tmp_path / "adapter_model.safetensors", metadata={"format": "pt"})
    assert (tmp_path / "adapter_model.safetensors").stat().st_size <= 2 * parameters + 128 * layers
