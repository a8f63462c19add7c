"""The architectures that can be planned by name alone, with what the paper chose for them (Table IV)."""

from dataclasses import dataclass, field
from typing import Any

import transformers


@dataclass(frozen=True)
class Architecture:
    """A published model: how transformers builds it, and the paper's adapter for it.

    Attributes:
        model_class: The class in transformers.
        hyperparameters: What the published `config.json` says, as far as it decides the number of parameters.
        paper_shapes: Dims by module name; empty where the paper has no adapter for the model.
        paper_r: The paper's TT-rank, or None.
    """

    model_class: str
    hyperparameters: dict[str, Any]
    paper_shapes: dict[str, list[int]] = field(default_factory=dict)
    paper_r: int | None = None

    def config(self) -> Any:
        """The transformers config of the model."""
        return getattr(transformers, self.model_class).config_class(
            architectures=[self.model_class], **self.hyperparameters
        )


BUILT_IN = {
    "deberta-base": Architecture(
        "DebertaForSequenceClassification",
        {
            "vocab_size": 50265,
            "hidden_size": 768,
            "num_hidden_layers": 12,
            "num_attention_heads": 12,
            "intermediate_size": 3072,
            "max_position_embeddings": 512,
            "type_vocab_size": 0,
            "relative_attention": True,
            "pos_att_type": ["c2p", "p2c"],
            "position_biased_input": False,
            "num_labels": 2,
        },
        paper_shapes={"in_proj": [64, 36, 12, 64]},
        paper_r=5,
    ),
    "roberta-base": Architecture(
        "RobertaForSequenceClassification",
        {
            "vocab_size": 50265,
            "hidden_size": 768,
            "num_hidden_layers": 12,
            "num_attention_heads": 12,
            "intermediate_size": 3072,
            "max_position_embeddings": 514,
            "type_vocab_size": 1,
            "num_labels": 2,
        },
        paper_shapes={"query": [64, 16, 9, 64], "value": [64, 16, 9, 64]},
        paper_r=4,
    ),
    "llama2-7b": Architecture(
        "LlamaForCausalLM",
        {
            "vocab_size": 32000,
            "hidden_size": 4096,
            "num_hidden_layers": 32,
            "num_attention_heads": 32,
            "num_key_value_heads": 32,
            "intermediate_size": 11008,
            "tie_word_embeddings": False,
        },
        paper_shapes={"q_proj": [16] * 6, "v_proj": [16] * 6},
        paper_r=5,
    ),
    # The paper gives one shape of 12 cores; v_proj is 1024 x 4096 (grouped-query attention), so one 4 goes.
    "llama3-8b": Architecture(
        "LlamaForCausalLM",
        {
            "vocab_size": 128256,
            "hidden_size": 4096,
            "num_hidden_layers": 32,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "intermediate_size": 14336,
            "tie_word_embeddings": False,
        },
        paper_shapes={
            "q_proj": [16, 4, 4, 4, 2, 2, 2, 2, 4, 4, 4, 16],
            "v_proj": [16, 4, 4, 2, 2, 2, 2, 4, 4, 4, 16],
        },
        paper_r=10,
    ),
    # PEFT compares its methods on it
    "llama3.2-3b": Architecture(
        "LlamaForCausalLM",
        {
            "vocab_size": 128256,
            "hidden_size": 3072,
            "num_hidden_layers": 28,
            "num_attention_heads": 24,
            "num_key_value_heads": 8,
            "intermediate_size": 8192,
            "tie_word_embeddings": True,
        },
    ),
    "llama3.1-405b": Architecture(
        "LlamaForCausalLM",
        {
            "vocab_size": 128256,
            "hidden_size": 16384,
            "num_hidden_layers": 126,
            "num_attention_heads": 128,
            "num_key_value_heads": 8,
            "intermediate_size": 53248,
            "tie_word_embeddings": False,
        },
    ),
    "mixtral-8x7b": Architecture(
        "MixtralForCausalLM",
        {
            "vocab_size": 32000,
            "hidden_size": 4096,
            "num_hidden_layers": 32,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "intermediate_size": 14336,
            "num_local_experts": 8,
            "num_experts_per_tok": 2,
            "tie_word_embeddings": False,
        },
    ),
}
