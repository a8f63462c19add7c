"""What is merged is what was adapted, also where layers share a weight, and when it is saved and loaded again."""

import pytest
import torch
import transformers as tf
from peft import get_peft_model
from torch import nn

from ttlora import TTLoraConfig
from ttlora.tuners.bottleneck import BottleneckConfig
from ttlora.tuners.loretta_rep import LorettaRepConfig
from ttlora.tuners.lorta import LortaConfig
from ttlora.tuners.meta_tt import MetaTTConfig

LIKE_BERT = {
    "vocab_size": 64,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "max_position_embeddings": 32,
}
LIKE_BART = {
    "vocab_size": 64, "d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2,
    "decoder_attention_heads": 2, "encoder_ffn_dim": 16, "decoder_ffn_dim": 16, "max_position_embeddings": 32,
}  # fmt: skip
MODELS = {
    "GPT2LMHeadModel": {"vocab_size": 64, "n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 32},
    "LlamaForCausalLM": {**LIKE_BERT, "tie_word_embeddings": True},
    "BertForMaskedLM": LIKE_BERT,
    "T5ForConditionalGeneration": {
        "vocab_size": 64, "d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 1, "num_heads": 2
    },
    "BartForConditionalGeneration": LIKE_BART,
}  # fmt: skip
IDS = torch.arange(3, 11)[None]


def build(kind):
    torch.manual_seed(0)
    kind = getattr(tf, kind)
    return kind(kind.config_class(**MODELS[kind.__name__])).eval()


@torch.no_grad()
def logits(model):
    decoder = {"decoder_input_ids": IDS} if model.config.is_encoder_decoder else {}
    return model(input_ids=IDS, **decoder).logits


def embeddings(model):
    return [module.weight for module in (model.get_input_embeddings(), model.get_output_embeddings())]


@pytest.mark.parametrize(
    ("kind", "targets"),
    [
        ("GPT2LMHeadModel", ["lm_head"]),
        ("GPT2LMHeadModel", ["wte"]),
        ("GPT2LMHeadModel", ["wte", "lm_head", "c_attn"]),
        ("LlamaForCausalLM", ["lm_head"]),
        ("LlamaForCausalLM", ["embed_tokens", "lm_head"]),
        ("BertForMaskedLM", ["decoder"]),
        ("BertForMaskedLM", ["word_embeddings"]),
        ("T5ForConditionalGeneration", ["lm_head"]),
        ("T5ForConditionalGeneration", ["embed_tokens"]),
        ("BartForConditionalGeneration", ["lm_head"]),
        ("BartForConditionalGeneration", ["embed_tokens"]),
    ],
)
@pytest.mark.parametrize("resized", [False, True])
def test_tied_weights(kind, targets, resized, tmp_path):
    model = build(kind)
    if resized:
        model.resize_token_embeddings(72)
        if targets == ["embed_tokens"]:
            with pytest.raises(
                ValueError, match=r"shared is one module with .*embed_tokens.* save the model and load it"
            ):
                get_peft_model(model, TTLoraConfig(target_modules=targets))
            model.save_pretrained(tmp_path)
            model = type(model).from_pretrained(tmp_path).eval()
    first, second = embeddings(model)
    assert first is second
    unadapted = logits(model)
    adapted = get_peft_model(model, TTLoraConfig(target_modules=targets, r=3, init_weights=False)).eval()
    expected = logits(adapted)
    assert not torch.allclose(expected, unadapted, atol=1e-2)
    merged = adapted.merge_and_unload()
    torch.testing.assert_close(logits(merged), expected, rtol=0, atol=1e-5)
    merged.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path).eval()
    torch.testing.assert_close(logits(loaded), expected, rtol=0, atol=1e-5)


def test_a_merge_that_is_taken_back_and_an_adapter_that_is_taken_off():
    model = build("GPT2LMHeadModel")
    unadapted = logits(model)
    adapted = get_peft_model(model, TTLoraConfig(target_modules=["lm_head"], r=3, init_weights=False)).eval()
    expected = logits(adapted)
    adapted.merge_adapter()
    torch.testing.assert_close(logits(adapted), expected)
    adapted.unmerge_adapter()
    torch.testing.assert_close(logits(adapted), expected)
    torch.testing.assert_close(logits(adapted.unload()), unadapted)


@pytest.mark.parametrize("kind", ["T5ForConditionalGeneration", "BartForConditionalGeneration"])
def test_an_embedding_that_is_never_called_is_no_target(kind):
    with pytest.raises(
        ValueError, match=r"shared is never called: encoder.embed_tokens and decoder.embed_tokens stand"
    ):
        get_peft_model(build(kind), TTLoraConfig(target_modules=["shared"]))


@pytest.mark.parametrize("config", [TTLoraConfig, LorettaRepConfig, MetaTTConfig, LortaConfig])
def test_an_adapter_that_is_not_there_is_not_merged(config):
    model = get_peft_model(build("LlamaForCausalLM"), config(r=4, init_weights=False)).eval()
    expected = logits(model)
    for merge in (model.merge_adapter, model.merge_and_unload):
        with pytest.raises(ValueError, match=r"^there is no adapter 'polite': there are default$"):
            merge(adapter_names=["default", "polite"])
    assert torch.equal(logits(model), expected)


@pytest.mark.parametrize("config", [LorettaRepConfig, BottleneckConfig])
def test_two_adapters_with_norms_are_not_active_at_once(config):
    model = get_peft_model(build("LlamaForCausalLM"), config(r=4))
    model.add_adapter("other", config(r=4))
    with pytest.raises(ValueError, match=r"^the adapters default, other cannot be active at once: each has") as error:
        model.base_model.set_adapter(["default", "other"])
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("config", [TTLoraConfig, LorettaRepConfig, MetaTTConfig, LortaConfig])
def test_a_reference_is_a_copy(config):
    """TRL's trainers make it so, and copy by LoRA's names."""
    model = get_peft_model(build("LlamaForCausalLM"), config(r=4, init_weights=False)).eval()
    expected = logits(model)
    model.add_adapter("ref", model.peft_config["default"])
    model.add_adapter("other", model.peft_config["default"])
    for name, copied in (("ref", True), ("other", False), ("default", True)):
        model.set_adapter(name)
        if name != "ref":  # the copied norms are TRL's to copy
            assert torch.allclose(logits(model), expected) == copied
    cores = {name: weight for name, weight in model.named_parameters() if name.endswith((".ref", ".ref.entries"))}
    assert cores
    for name, weight in cores.items():
        assert torch.equal(weight, model.get_parameter(name.replace(".ref", ".default")))


@pytest.mark.parametrize("x", [torch.zeros(0, 16), torch.zeros(2, 0, 16), torch.randn(16, 5).T, torch.randn(16)])
@pytest.mark.parametrize("config", [TTLoraConfig, LorettaRepConfig, BottleneckConfig, MetaTTConfig, LortaConfig])
def test_inputs_of_every_form(config, x):
    model = get_peft_model(nn.Sequential(nn.Linear(16, 8)), config(r=2, target_modules=["0"], init_weights=False))
    for grads in (True, False):
        with torch.set_grad_enabled(grads):
            y = model(x)
            torch.testing.assert_close(y, model(x.contiguous()))
            assert y.shape == (*x.shape[:-1], 8)
    leaf = x.clone().requires_grad_()
    model(leaf).sum().backward()
    assert leaf.grad.shape == x.shape
    model(x).sum().backward()  # an input that needs no gradient
