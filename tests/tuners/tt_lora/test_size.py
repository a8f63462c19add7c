import torch
from peft import get_peft_model, get_peft_model_state_dict
from safetensors.torch import save_file
from transformers import LlamaConfig, LlamaForCausalLM

from ttlora import TTLoraConfig


def test_the_file_of_a_llama2_7b_adapter_is_little_more_than_its_112_640_parameters(tmp_path):
    with torch.device("meta"):
        base = LlamaForCausalLM(LlamaConfig(vocab_size=32000, hidden_size=4096, num_hidden_layers=32))
        model = get_peft_model(base, TTLoraConfig(task_type="CAUSAL_LM"))
    state = get_peft_model_state_dict(model)
    assert len(state) == 64
    assert sum(tensor.numel() for tensor in state.values()) == 112_640
    assert model.peft_config["default"].shape == [16] * 6

    # as PEFT writes it, in bf16
    half = {name: torch.zeros(tensor.shape, dtype=torch.bfloat16) for name, tensor in state.items()}
    save_file(half, tmp_path / "adapter_model.safetensors", metadata={"format": "pt"})
    assert (tmp_path / "adapter_model.safetensors").stat().st_size <= 1.06 * 225_280
