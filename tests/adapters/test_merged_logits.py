"""What a merged model answers, loaded by transformers alone, is what the adapted one answered: each kind of model."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, TrainableTokensConfig, VeraConfig, get_peft_model
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    ResNetConfig,
    ResNetForImageClassification,
    SiglipVisionConfig,
    SiglipVisionModel,
    T5Config,
    T5ForConditionalGeneration,
    Wav2Vec2Config,
    Wav2Vec2ForCTC,
)

from ttlora import TTLoraConfig
from ttlora.adapters.base_model import load_base_of
from ttlora.adapters.merge import merge_adapter
from ttlora.adapters.read import read_adapter
from ttlora.errors import UserError
from ttlora.tuners.loretta_rep import LorettaRepConfig

VOCABULARY = 64
TOKENS = torch.arange(4, 20).reshape(2, 8)
PIXELS = torch.linspace(-1, 1, 2 * 3 * 16 * 16).reshape(2, 3, 16, 16)
SOUND = torch.linspace(-1, 1, 2 * 400).reshape(2, 400)

# of a decoder of Llama's kind, and of BERT's
SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}
HEADS = {"encoder_attention_heads": 4, "decoder_attention_heads": 4}


def llama(**options: Any) -> Any:
    return LlamaForCausalLM(LlamaConfig(**SIZES, num_key_value_heads=2, **options))


def tied_llama() -> Any:
    return llama(tie_word_embeddings=True)


def gpt2() -> Any:
    return GPT2LMHeadModel(GPT2Config(vocab_size=VOCABULARY, n_embd=32, n_layer=2, n_head=4, n_positions=40))


def t5(**options: Any) -> Any:
    sizes = {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 1, "num_heads": 4}
    return T5ForConditionalGeneration(T5Config(vocab_size=VOCABULARY, decoder_start_token_id=0, **sizes, **options))


def t5_without_scale() -> Any:
    """Of version 1.1, whose config says that nothing is tied and means that outputs are not scaled."""
    return t5(tie_word_embeddings=False, feed_forward_proj="gated-gelu")


def bart() -> Any:
    sizes = {"d_model": 32, "encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48}
    return BartForConditionalGeneration(BartConfig(vocab_size=VOCABULARY, **sizes, **HEADS))


def bert(model_class: Any = BertForSequenceClassification) -> Any:
    return model_class(BertConfig(**SIZES))


def masked_bert() -> Any:
    return bert(BertForMaskedLM)


def mixtral() -> Any:
    return MixtralForCausalLM(MixtralConfig(**SIZES, num_key_value_heads=2, num_local_experts=4))


def resnet() -> Any:
    return ResNetForImageClassification(ResNetConfig(embedding_size=16, hidden_sizes=[16, 32], depths=[1, 1]))


def siglip() -> Any:
    sizes = {key: value for key, value in SIZES.items() if key != "vocab_size"}
    return SiglipVisionModel(SiglipVisionConfig(**sizes, image_size=16, patch_size=4))


def wav2vec() -> Any:
    positions = {"num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 4}
    layers = {"conv_dim": (16, 16), "conv_stride": (5, 2), "conv_kernel": (10, 3), "num_feat_extract_layers": 2}
    return Wav2Vec2ForCTC(Wav2Vec2Config(**SIZES, **positions, **layers))


def answers(model: Any) -> torch.Tensor:
    inputs = {"pixel_values": PIXELS, "input_values": SOUND}
    name = model.main_input_name
    given = {name: inputs.get(name, TOKENS)}
    if model.config.is_encoder_decoder:
        given["decoder_input_ids"] = TOKENS
    with torch.no_grad():
        output = model.eval()(**given)
    # the attention of Siglip's head has nothing to do with its hidden states
    found: torch.Tensor = output.get("pooler_output", output[0]) if name == "pixel_values" else output[0]
    return found.float()


def tt(**options: Any) -> Any:
    return TTLoraConfig(init_weights=False, **options)


def lora(**options: Any) -> Any:
    return LoraConfig(init_lora_weights=False, r=4, **options)


def rep(**options: Any) -> Any:
    return LorettaRepConfig(init_weights=False, **options)


def merged_of(folder: Path, base: Path, output: Path) -> Any:
    adapter = read_adapter(folder)
    model, _ = load_base_of(adapter, str(base), local_files_only=True)
    merge_adapter(adapter, model).save_pretrained(output)


def assert_merged(
    tmp_path: Path,
    make: Callable[[], Any],
    config: Any,
    rows: int | None = None,
    dtype: torch.dtype = torch.float32,
) -> dict[str, Any]:
    """Train by chance, save, merge, load both as a user does, and compare; the config of the merged model."""
    torch.manual_seed(0)
    model = make()
    for weight in model.parameters():
        if weight.dim() > 1:
            weight.data.normal_(0, 0.2)
    base_class = type(model)
    model.to(dtype).save_pretrained(tmp_path / "base")

    def load_base_model() -> Any:
        base = base_class.from_pretrained(tmp_path / "base")
        if rows is not None:
            torch.manual_seed(1)
            base.resize_token_embeddings(rows, mean_resizing=False)
        return base

    before = answers(load_base_model())
    adapted = get_peft_model(load_base_model(), config)
    for name, weight in adapted.named_parameters():
        if weight.requires_grad and not any(part in name for part in ("ttlora_", "loretta_rep_")):
            weight.data.add_(torch.randn_like(weight) * 0.05)
    adapted.save_pretrained(tmp_path / "adapter")
    wanted = answers(PeftModel.from_pretrained(load_base_model(), tmp_path / "adapter"))
    assert (wanted - before).abs().max() > 0.01 * before.abs().max()

    merged_of(tmp_path / "adapter", tmp_path / "base", tmp_path / "merged")
    merged = base_class.from_pretrained(tmp_path / "merged")
    assert merged.dtype == dtype
    error = (answers(merged) - wanted).abs().max() / wanted.abs().max()
    # a weight of 16 bits is rounded once more where an update has been added
    assert error <= {torch.float32: 1e-5, torch.float16: 1e-2, torch.bfloat16: 8e-2}[dtype]
    saved: dict[str, Any] = json.loads((tmp_path / "merged" / "config.json").read_text())
    return saved


KINDS = pytest.mark.parametrize("kind", [tt, lora, rep])
BOTH = pytest.mark.parametrize("kind", [tt, lora])


@KINDS
@pytest.mark.parametrize(
    ("make", "targets"),
    [
        (llama, ["q_proj", "v_proj", "down_proj"]),
        (llama, ["lm_head", "q_proj"]),
        (gpt2, ["c_attn"]),
        (t5, ["q", "v"]),
        (t5_without_scale, ["q", "v", "wi_0"]),
        (bart, ["q_proj"]),
        (masked_bert, ["query"]),
        (bert, ["query", "value"]),
        (mixtral, ["q_proj", "v_proj"]),
    ],
)
def test_linear_layers(tmp_path: Path, make: Any, targets: list[str], kind: Any) -> None:
    assert_merged(tmp_path, make, kind(target_modules=targets))


@KINDS
@pytest.mark.parametrize(
    ("make", "targets", "tied"),
    [
        (gpt2, ["lm_head", "c_attn"], False),
        (tied_llama, ["lm_head"], False),
        (masked_bert, ["decoder", "query"], False),
        # which an encoder and decoder says is only whether outputs are scaled
        (t5, ["lm_head", "q"], True),
        (t5_without_scale, ["lm_head", "q"], True),
        (bart, ["lm_head", "q_proj"], True),
    ],
)
def test_an_output_layer_that_is_tied(tmp_path: Path, make: Any, targets: list[str], tied: bool, kind: Any) -> None:
    saved = assert_merged(tmp_path, make, kind(target_modules=targets))
    assert saved["tie_word_embeddings"] == tied


@BOTH
@pytest.mark.parametrize(
    ("make", "targets"),
    [
        (llama, ["embed_tokens", "lm_head"]),
        (gpt2, ["wte"]),
        (gpt2, ["wte", "lm_head"]),
        (tied_llama, ["embed_tokens"]),
        (masked_bert, ["word_embeddings"]),
        (masked_bert, ["word_embeddings", "decoder"]),
        (t5, ["embed_tokens", "q"]),
        (t5, ["encoder.embed_tokens"]),
        (t5, ["embed_tokens"]),
        (bart, ["embed_tokens", "q_proj"]),
        (bart, ["encoder.embed_tokens"]),
    ],
)
def test_embeddings(tmp_path: Path, make: Any, targets: list[str], kind: Any) -> None:
    assert_merged(tmp_path, make, kind(target_modules=targets))


@KINDS
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_the_number_format_of_a_tied_base(tmp_path: Path, kind: Any, dtype: torch.dtype) -> None:
    assert_merged(tmp_path, tied_llama, kind(target_modules=["lm_head", "q_proj"]), dtype=dtype)


@KINDS
@pytest.mark.parametrize("rows", [VOCABULARY + 3, VOCABULARY - 2])
@pytest.mark.parametrize("make", [llama, tied_llama, t5, bart, masked_bert, bert])
def test_resized_vocabularies(tmp_path: Path, make: Any, rows: int, kind: Any) -> None:
    targets = r".*\.(q_proj|q|query)"
    saved = assert_merged(tmp_path, make, kind(target_modules=targets), rows=rows)
    assert saved["vocab_size"] == rows
    assert saved["tie_word_embeddings"] == (make is not llama)


@BOTH
@pytest.mark.parametrize(
    ("make", "options"),
    [
        (gpt2, {"target_modules": ["lm_head", "c_attn"]}),
        (gpt2, {"target_modules": ["wte"]}),
        (bart, {"target_modules": ["lm_head", "q_proj"]}),
        (llama, {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens", "lm_head"]}),
        (gpt2, {"target_modules": ["c_attn"], "modules_to_save": ["wte", "lm_head"]}),
        (t5, {"target_modules": ["q"], "modules_to_save": ["shared", "lm_head"]}),
    ],
)
def test_added_tokens_and_embeddings_that_learn(tmp_path: Path, make: Any, options: dict[str, Any], kind: Any) -> None:
    assert_merged(tmp_path, make, kind(**options), rows=VOCABULARY + 3)


@pytest.mark.parametrize("make", [llama, tied_llama])
@pytest.mark.parametrize("rows", [None, VOCABULARY + 2])
def test_rows_of_the_embeddings_that_learn(tmp_path: Path, make: Any, rows: int | None) -> None:
    tokens = [5, (rows or VOCABULARY) - 1]
    saved = assert_merged(tmp_path, make, lora(target_modules=["q_proj"], trainable_token_indices=tokens), rows=rows)
    assert saved["tie_word_embeddings"] == (make is tied_llama)


def test_tokens_that_learn_alone(tmp_path: Path) -> None:
    config = TrainableTokensConfig(token_indices=[5, VOCABULARY], target_modules=["embed_tokens"])
    assert_merged(tmp_path, tied_llama, config, rows=VOCABULARY + 2)


@BOTH
@pytest.mark.parametrize(
    ("make", "options"),
    [
        (mixtral, {"target_parameters": ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]}),
        (resnet, {"target_modules": ["convolution"]}),
        (siglip, {"target_modules": ["head.attention", "patch_embedding", "q_proj"]}),
        (wav2vec, {"target_modules": ["conv_layers.1.conv", "q_proj"]}),
    ],
)
def test_experts_convolutions_and_attention(tmp_path: Path, make: Any, options: dict[str, Any], kind: Any) -> None:
    assert_merged(tmp_path, make, kind(**{"target_modules": ["q_proj"], **options}))


@pytest.mark.parametrize(
    "config",
    [
        tt(target_modules=["decoder", "query"], bias="all"),
        lora(target_modules=["decoder", "query"], bias="all"),
        lora(target_modules=["word_embeddings", "decoder"], use_dora=True),
        lora(target_modules=["query"], use_rslora=True),
        LoraConfig(init_lora_weights="pissa", r=4, target_modules=["decoder", "query"]),
        VeraConfig(r=8, target_modules=["decoder"]),
        lora(target_modules=["word_embeddings"], ensure_weight_tying=True),
    ],
    ids=["tt-bias", "bias", "dora", "rslora", "pissa", "vera", "tied-lora"],
)
def test_what_else_the_methods_of_peft_do(tmp_path: Path, config: Any) -> None:
    assert_merged(tmp_path, masked_bert, config)


@pytest.mark.parametrize("modules", [["lm_head"], ["embed_tokens"], ["embed_tokens", "lm_head"]])
def test_one_of_two_tied_layers_trained_whole(tmp_path: Path, modules: list[str]) -> None:
    assert_merged(tmp_path, tied_llama, tt(target_modules=["q_proj"], modules_to_save=modules))


def refused(
    tmp_path: Path, make: Any, config: Any, *parts: str, rows: int | None = None, embeddings: Any = "auto"
) -> None:
    torch.manual_seed(0)
    make().save_pretrained(tmp_path / "base")
    model = type(make()).from_pretrained(tmp_path / "base")
    if rows is not None:
        model.resize_token_embeddings(rows, mean_resizing=False)
    get_peft_model(model, config).save_pretrained(tmp_path / "adapter", save_embedding_layers=embeddings)
    with pytest.raises(UserError) as error:
        merged_of(tmp_path / "adapter", tmp_path / "base", tmp_path / "merged")
    assert "\n" not in str(error.value)
    for part in parts:
        assert part in str(error.value)


@pytest.mark.parametrize(
    ("config", "embeddings", "parts"),
    [
        # PEFT saves the adapted one of two layers that are not tied
        (
            tt(target_modules=["embed_tokens"]),
            "auto",
            ["was trained with 66 tokens", "64 to 65 of lm_head.weight are not"],
        ),
        (tt(target_modules=["lm_head"]), False, ["lm_head is 64 x 32", "66 x 32"]),
        (lora(target_modules=["lm_head"]), False, ["lm_head.lora_B.weight is 66x4 in it and 64x4 in the model"]),
        (lora(target_modules=["q_proj"], trainable_token_indices=[65]), False, ["index 65 is out of bounds"]),
    ],
)
def test_rows_that_were_not_saved(tmp_path: Path, config: Any, embeddings: Any, parts: list[str]) -> None:
    refused(tmp_path, llama, config, *parts, rows=66, embeddings=embeddings)


@pytest.mark.parametrize(
    ("make", "config", "part"),
    [
        (wav2vec, tt(target_modules=["pos_conv_embed.conv"]), "makes its weight from others at every step"),
        (wav2vec, lora(target_modules=["pos_conv_embed.conv"]), "makes its weight from others at every step"),
        (llama, LoraConfig(init_lora_weights="pissa_niter_4", r=4), "random approximation"),
        (llama, lora(target_modules=["q_proj"], lora_bias=True), "the base layer has no bias"),
        (
            tied_llama,
            lora(target_modules=["lm_head"], trainable_token_indices=[3]),
            "PEFT leaves a layer of its own in the model, lm_head.token_adapter",
        ),
    ],
    ids=["tt-weight-norm", "weight-norm", "pissa", "bias", "two-wrappers"],
)
def test_what_cannot_be_merged(tmp_path: Path, make: Any, config: Any, part: str) -> None:
    refused(tmp_path, make, config, part)
