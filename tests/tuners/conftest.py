"""One tiny model with random weights for each architecture, and inputs for it."""

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
import transformers as tf
from torch import Tensor, nn

SIZES = {
    "vocab_size": 64,
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 40,
    "max_position_embeddings": 32,
    "pad_token_id": 0,
}


@dataclass(frozen=True)
class Architecture:
    """How to build a model of some type, and what is adapted in it by default."""

    kind: type[nn.Module]
    config: tf.PreTrainedConfig
    # what TT-LoRA adapts: name of the last part to the rows and columns of the layers with that name
    targets: dict[str, set[tuple[int, int]]]
    count: int
    # how many layers are those of query and value, or the fused ones with both
    queries_and_values: int

    def build(self, seed: int = 0, dtype: torch.dtype = torch.float32) -> nn.Module:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            return self.kind(self.config).to(dtype).eval()

    @property
    def inputs(self) -> dict[str, Tensor]:
        ids = torch.randint(3, 60, (3, 7), generator=torch.Generator().manual_seed(1))
        inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        return inputs | ({"decoder_input_ids": ids[:, :4]} if self.config.is_encoder_decoder else {})


# of an encoder as BERT: after attention, and before and after the activation
DENSE = {"dense": {(24, 24), (40, 24), (24, 40)}}
ARCHITECTURES = {
    # the pooler is a part of its body
    "bert": Architecture(
        tf.BertForSequenceClassification, tf.BertConfig(**SIZES), {"value": {(24, 24)}, **DENSE}, 9, 4
    ),
    "roberta": Architecture(
        tf.RobertaForSequenceClassification, tf.RobertaConfig(**SIZES), {"value": {(24, 24)}, **DENSE}, 8, 4
    ),
    # query, key and value in one weight
    "deberta": Architecture(
        tf.DebertaForSequenceClassification,
        tf.DebertaConfig(**SIZES, relative_attention=True, pos_att_type=["c2p", "p2c"]),
        {"in_proj": {(72, 24)}, **DENSE},
        8,
        2,
    ),
    "deberta-v2": Architecture(
        tf.DebertaV2ForSequenceClassification,
        tf.DebertaV2Config(**SIZES, relative_attention=True, pos_att_type=["c2p", "p2c"]),
        {"value_proj": {(24, 24)}, **DENSE},
        8,
        4,
    ),
    "mpnet": Architecture(
        tf.MPNetForSequenceClassification,
        tf.MPNetConfig(**SIZES),
        {"v": {(24, 24)}, "o": {(24, 24)}, "dense": {(40, 24), (24, 40)}},
        8,
        4,
    ),
    "distilbert": Architecture(
        tf.DistilBertForSequenceClassification,
        tf.DistilBertConfig(vocab_size=64, dim=24, n_layers=2, n_heads=4, hidden_dim=40, max_position_embeddings=32),
        {"v_lin": {(24, 24)}, "out_lin": {(24, 24)}, "lin1": {(40, 24)}, "lin2": {(24, 40)}},
        8,
        4,
    ),
    # the gate and what it multiplies in one weight, too
    "modernbert": Architecture(
        tf.ModernBertForSequenceClassification,
        tf.ModernBertConfig(**SIZES, cls_token_id=1, sep_token_id=2, bos_token_id=1, eos_token_id=2),
        {"Wqkv": {(72, 24)}, "Wo": {(24, 24), (24, 40)}, "Wi": {(80, 24)}},
        8,
        2,
    ),
    # two key-value heads for four query heads
    "llama": Architecture(
        tf.LlamaForCausalLM,
        tf.LlamaConfig(**SIZES, num_key_value_heads=2, bos_token_id=1, eos_token_id=2),
        {
            "v_proj": {(12, 24)}, "o_proj": {(24, 24)},
            "gate_proj": {(40, 24)}, "up_proj": {(40, 24)}, "down_proj": {(24, 40)},
        },
        10,
        4,
    ),
    # Conv1D: the weight is stored transposed
    "gpt2": Architecture(
        tf.GPT2LMHeadModel,
        tf.GPT2Config(vocab_size=64, n_embd=24, n_layer=2, n_head=4, n_positions=32, bos_token_id=1, eos_token_id=2),
        {"c_attn": {(72, 24)}, "c_proj": {(24, 24), (24, 96)}, "c_fc": {(96, 24)}},
        8,
        2,
    ),
    "t5": Architecture(
        tf.T5ForConditionalGeneration,
        tf.T5Config(
            vocab_size=64, d_model=24, d_kv=6, d_ff=40, num_layers=2, num_heads=4, decoder_start_token_id=0,
            bos_token_id=1, eos_token_id=2, pad_token_id=0,
        ),
        {"v": {(24, 24)}, "o": {(24, 24)}, "wi": {(40, 24)}, "wo": {(24, 40)}},
        20,
        12,
    ),
}  # fmt: skip


@pytest.fixture(params=ARCHITECTURES)
def architecture(request: pytest.FixtureRequest) -> Architecture:
    """Each architecture in turn."""
    return ARCHITECTURES[request.param]


@pytest.fixture
def architectures() -> dict[str, Architecture]:
    """All architectures by name."""
    return ARCHITECTURES


@pytest.fixture
def mlp() -> Callable[..., nn.Sequential]:
    """Builds two linear layers, 24 x 16 and 8 x 24, with the same weights each time."""

    def build(seed: int = 0, dtype: torch.dtype = torch.float32) -> nn.Sequential:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            return nn.Sequential(nn.Linear(16, 24), nn.ReLU(), nn.Linear(24, 8)).to(dtype).eval()

    return build


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)
