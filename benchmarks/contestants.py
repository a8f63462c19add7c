"""The models that are adapted, and the adapters that compete."""

import copy
from typing import Any

import torch
from measuring import LORA
from peft import LoraConfig, PeftConfig, VeraConfig, get_peft_model
from torch import nn
from transformers import BertConfig, BertForSequenceClassification, LlamaConfig, LlamaForCausalLM

from ttlora import TTLoraConfig
from ttlora.models.architectures import BUILT_IN
from ttlora.tuners.targets import default_targets

TT, VERA = "TT-LoRA r=5", "VeRA r=256"
DEFAULT, LORA_THERE = "TT-LoRA, defaults", "LoRA r=8, there"
# what each adapts, by its names in BERT and in Llama
QUERY_AND_VALUE = r".*\.(query|value|q_proj|v_proj)"

# without dropout: its cost would hide the adapter's
BERT: dict[str, Any] = {"num_labels": 2, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
# SmolLM2-135M
LLAMA: dict[str, Any] = {
    "vocab_size": 49152,
    "hidden_size": 576,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "intermediate_size": 1536,
    "max_position_embeddings": 8192,
    "tie_word_embeddings": True,
    "use_cache": False,
}


def adapter_configs(shape: str | list[int] = "auto", **options: Any) -> dict[str, PeftConfig]:
    """What competes, by name; each adapts query and value unless told. The shape is that of TT-LoRA's trains."""
    options = {"target_modules": QUERY_AND_VALUE, **options}
    return {
        TT: TTLoraConfig(r=5, alpha=4.0, shape=shape, **options),
        LORA: LoraConfig(r=8, **options),
        VERA: VeraConfig(r=256, **options),
    }


def default_configs(model: Any, **options: Any) -> dict[str, PeftConfig]:
    """TT-LoRA as it comes, and LoRA in the places that it adapts."""
    return {
        DEFAULT: TTLoraConfig(**options),
        LORA_THERE: LoraConfig(r=8, target_modules=default_targets(model), **options),
    }


def encoder(dtype: torch.dtype, **sizes: Any) -> BertForSequenceClassification:
    """A BERT with random weights and a classification head: 12 layers of 768 unless told."""
    return BertForSequenceClassification(BertConfig(**{**BERT, **sizes})).to(dtype)


def llama(dtype: torch.dtype, **sizes: Any) -> LlamaForCausalLM:
    """A Llama with random weights: SmolLM2-135M's 30 layers of 576 unless told."""
    return LlamaForCausalLM(LlamaConfig(**{**LLAMA, **sizes})).to(dtype)


def llama2_7b_layers(count: int, dtype: torch.dtype, **sizes: Any) -> LlamaForCausalLM:
    """`count` layers of LLaMA2-7B in memory, with next to no vocabulary.

    What the weights hold is left open: no benchmark that takes this model reads them.
    """
    of_llama2_7b = BUILT_IN["llama2-7b"].hyperparameters
    with torch.device("meta"):
        model = llama(dtype, **{**of_llama2_7b, "num_hidden_layers": count, "vocab_size": 8, **sizes})
    return model.to_empty(device=torch.get_default_device())


def sharing_weights(model: nn.Module) -> Any:
    """A copy of the modules around the same weights: no contestant has memory of its own, to be near or far."""
    tensors = [*model.parameters(), *model.buffers()]
    return copy.deepcopy(model, {id(tensor): tensor for tensor in tensors})


def adapted(model: nn.Module, config: PeftConfig, **options: Any) -> Any:
    """The model with an adapter on it, around the same weights."""
    return wrapped(sharing_weights(model), config, **options)


def wrapped(model: nn.Module, config: PeftConfig, **options: Any) -> Any:
    """What `get_peft_model` makes of the model and a copy of the config.

    VeRA draws its matrices from a generator of the CPU, which takes none of torch's default device; PEFT brings what it
    adds to where the model lies.
    """
    with torch.device("cpu"):
        return get_peft_model(model, copy.deepcopy(config), **options)
