import warnings

import pytest
import torch
import transformers as tf
from peft import get_peft_model
from peft.utils import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING
from transformers import BertConfig, BertForSequenceClassification

from ttlora import TTLoraConfig
from ttlora.compat import is_target
from ttlora.tuners.targets import (
    DEFAULT_TARGET_MODULES,
    default_places,
    linear_names,
    query_and_value,
    require_modules,
)
from ttlora.tuners.tt_lora import TTLoraLayer


@pytest.fixture
def bert():
    return BertForSequenceClassification(
        BertConfig(vocab_size=8, hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8)
    )


def test_by_the_models_type(bert):
    assert query_and_value(bert) == ["query", "value"]
    bert.config.model_type = "own"
    with pytest.raises(ValueError, match=r"model type 'own'; name the targets, out of query, key, value, dense$"):
        query_and_value(bert, ("classifier",))


def test_by_name(bert):
    require_modules(bert, ["query", "self.value", "bert.encoder.layer.0.output.dense"])
    for name in ("uery", "bert.encoder.layer.0.output.dens", "quer"):
        with pytest.raises(ValueError, match=f"'{name}' is no module of the model; its linear modules are query, "):
            require_modules(bert, ["query", name])


def test_names_of_the_head_are_left_out(bert):
    assert linear_names(bert).split(", ") == ["query", "key", "value", "dense", "classifier"]
    assert linear_names(bert, ("classifier",)).split(", ") == ["query", "key", "value", "dense"]


@pytest.mark.parametrize(
    "model_type", sorted(DEFAULT_TARGET_MODULES.keys() - TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING.keys())
)
def test_the_queries_and_values_that_peft_lacks_are_in_the_models(model_type):
    config = tf.AutoConfig.for_model(model_type)
    for part in (config, getattr(config, "text_config", None), getattr(config, "vision_config", None)):
        for field in ("num_hidden_layers", "encoder_layers", "decoder_layers"):
            if isinstance(getattr(part, field, None), int):
                setattr(part, field, 2)
        if getattr(part, "layer_types", None):
            part.layer_types = part.layer_types[:2]
    with torch.device("meta"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = tf.AutoModel.from_config(config)
        config = TTLoraConfig(target_modules=query_and_value(model))
        paths = [path for path, _ in model.named_modules() if is_target(config, path)]
        adapted = get_peft_model(model, TTLoraConfig(target_modules=paths))
    layers = [name for name, module in adapted.named_modules() if isinstance(module, TTLoraLayer)]
    assert layers
    assert all("attention" in name or "attn" in name for name in layers)


SIZES = {
    "vocab_size": 16,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
}


def on_meta(kind, **config):
    kind = getattr(tf, kind)
    with torch.device("meta"):
        return kind(kind.config_class(**config))


OF_BERT = ["attention.self.value", "attention.output.dense", "intermediate.dense", "output.dense"]
OF_LLAMA = ["self_attn.v_proj", "self_attn.o_proj", "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"]
MAMBA = {"num_hidden_layers": 1, "hidden_size": 16, "vocab_size": 16, "state_size": 4}


class TestDefaultPlaces:
    @pytest.mark.parametrize(
        ("kind", "config", "expected"),
        [
            # the pooler is a part of its body, the classifier is not
            (
                "BertForSequenceClassification",
                SIZES,
                [*(f"bert.encoder.layer.0.{name}" for name in OF_BERT), "bert.pooler.dense"],
            ),
            ("BertForMaskedLM", SIZES, [f"bert.encoder.layer.0.{name}" for name in OF_BERT]),
            # nobody may ask a body alone for what its pooler makes
            ("BertModel", SIZES, [f"encoder.layer.0.{name}" for name in OF_BERT]),
            # query, key and value in one layer; not the projections of positions
            (
                "DebertaForSequenceClassification",
                {**SIZES, "relative_attention": True, "pos_att_type": ["c2p", "p2c"]},
                [f"deberta.encoder.layer.0.{name}" for name in ("attention.self.in_proj", *OF_BERT[1:])],
            ),
            (
                "DebertaV2ForSequenceClassification",
                {**SIZES, "relative_attention": True, "pos_att_type": ["c2p", "p2c"], "share_att_key": False},
                [f"deberta.encoder.layer.0.{name}" for name in ("attention.self.value_proj", *OF_BERT[1:])],
            ),
            ("LlamaForCausalLM", SIZES, [f"model.layers.0.{name}" for name in OF_LLAMA]),
            (
                "LlamaForCausalLM",
                {**SIZES, "tie_word_embeddings": True},
                [f"model.layers.0.{name}" for name in OF_LLAMA],
            ),
            ("LlamaForSequenceClassification", SIZES, [f"model.layers.0.{name}" for name in OF_LLAMA]),
            (
                "GPT2LMHeadModel",
                {"vocab_size": 16, "n_embd": 16, "n_layer": 1, "n_head": 2},
                [f"transformer.h.0.{name}" for name in ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")],
            ),
            (
                "T5ForConditionalGeneration",
                {"vocab_size": 16, "d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 1, "num_heads": 2},
                [
                    "encoder.block.0.layer.0.SelfAttention.v",
                    "encoder.block.0.layer.0.SelfAttention.o",
                    "encoder.block.0.layer.1.DenseReluDense.wi",
                    "encoder.block.0.layer.1.DenseReluDense.wo",
                    "decoder.block.0.layer.0.SelfAttention.v",
                    "decoder.block.0.layer.0.SelfAttention.o",
                    "decoder.block.0.layer.1.EncDecAttention.v",
                    "decoder.block.0.layer.1.EncDecAttention.o",
                    "decoder.block.0.layer.2.DenseReluDense.wi",
                    "decoder.block.0.layer.2.DenseReluDense.wo",
                ],
            ),
            # its experts and their router are parameters
            (
                "MixtralForCausalLM",
                {**SIZES, "num_key_value_heads": 2, "num_local_experts": 4},
                ["model.layers.0.self_attn.v_proj", "model.layers.0.self_attn.o_proj"],
            ),
            # other names of query and key
            ("CTRLModel", {"vocab_size": 16, "n_embd": 16, "dff": 24, "n_layer": 1, "n_head": 2}, [
                "h.0.multi_head_attention.Wv", "h.0.multi_head_attention.dense", "h.0.ffn.0", "h.0.ffn.2",
            ]),
            # what a fused kernel reads cannot be adapted
            ("MambaForCausalLM", MAMBA, ["backbone.layers.0.mixer.in_proj"]),
            (
                "WavLMModel",
                {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2},
                [
                    "feature_projection.projection",
                    "encoder.layers.0.attention.gru_rel_pos_linear",
                    "encoder.layers.0.feed_forward.intermediate_dense",
                    "encoder.layers.0.feed_forward.output_dense",
                ],
            ),
        ],
    )  # fmt: skip
    def test_they_are_the_bodys_linear_layers_but_query_and_key(self, kind, config, expected):
        model = on_meta(kind, **config)
        assert default_places(model) == expected
        adapted = get_peft_model(model, TTLoraConfig(), low_cpu_mem_usage=True)
        assert sorted(adapted.targeted_module_names) == sorted(expected)
        # and a further adapter goes to the same places, though their layers are no longer plain ones
        assert default_places(adapted.base_model.model) == expected

    def test_of_a_type_that_peft_does_not_know(self):
        model = on_meta("Olmo3ForCausalLM", **SIZES)
        assert model.config.model_type not in DEFAULT_TARGET_MODULES
        adapted = get_peft_model(model, TTLoraConfig(), low_cpu_mem_usage=True)
        assert sorted(adapted.targeted_module_names) == sorted(f"model.layers.0.{name}" for name in OF_LLAMA)

    def test_a_head_that_trains_whole_is_left_out(self, bert):
        places = default_places(bert, ("classifier", "bert.pooler"))
        assert places == [f"bert.encoder.layer.0.{name}" for name in OF_BERT]

    def test_so_is_what_another_adapter_trains_whole(self, bert):
        adapted = get_peft_model(bert, TTLoraConfig(modules_to_save=["pooler"]))
        adapted.add_adapter("second", TTLoraConfig())
        assert default_places(adapted.base_model.model) == [f"bert.encoder.layer.0.{name}" for name in OF_BERT]
        assert adapted.base_model.targeted_module_names == default_places(adapted.base_model.model)

    def test_so_is_an_output_layer_that_another_adapter_adapts(self, architectures):
        t5 = architectures["t5"].build()
        adapted = get_peft_model(t5, TTLoraConfig(target_modules=["lm_head"]))
        assert len(default_places(adapted.base_model.model)) == architectures["t5"].count

    def test_a_model_without_linear_layers_asks_for_targets(self):
        model = on_meta("ResNetModel", embedding_size=8, hidden_sizes=[8], depths=[1], layer_type="basic")
        with pytest.raises(ValueError, match="ResNetModel has no linear layers that are adapted by default: name the"):
            default_places(model)
