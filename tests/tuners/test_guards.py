"""What PEFT guards or converts for LoRA alone holds for our tuners."""

import copy

import pytest
import torch
import transformers as tf
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn

from ttlora import TTLoraConfig
from ttlora.tuners.bottleneck import BottleneckConfig
from ttlora.tuners.loretta_rep import LorettaRepConfig
from ttlora.tuners.lorta import LortaConfig
from ttlora.tuners.meta_tt import MetaTTConfig
from ttlora.tuners.tt_lora import TTLoraLayer

SIZES = {
    "vocab_size": 64,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "max_position_embeddings": 32,
}
ALL = pytest.mark.parametrize("config", [TTLoraConfig, LorettaRepConfig, BottleneckConfig, MetaTTConfig, LortaConfig])
LORA_USERS_LIST = ["q_proj", "v_proj", "w1", "w2", "w3"]


def on_meta(kind, **config):
    kind = getattr(tf, kind)
    with torch.device("meta"):
        return kind(kind.config_class(**config))


def mixtral():
    torch.manual_seed(0)
    return tf.MixtralForCausalLM(tf.MixtralConfig(**SIZES, num_local_experts=4, num_experts_per_tok=2)).eval()


def adapted_names(model):
    """Modules, and parameters where these are adapted."""
    return {name for name, _ in model.base_model._layers()}


class TestExperts:
    def test_a_lora_users_list_adapts_what_lora_adapts(self):
        ours = get_peft_model(mixtral(), TTLoraConfig(target_modules=LORA_USERS_LIST, init_weights=False))
        lora = get_peft_model(mixtral(), LoraConfig(target_modules=LORA_USERS_LIST))
        assert adapted_names(ours) == {*lora.targeted_module_names, *lora.targeted_parameter_names}
        assert len(adapted_names(ours)) == 2 * (2 + 2)
        ids = torch.arange(8)[None]
        with torch.no_grad():
            adapted = ours(ids).logits
            for layer in ours.modules():
                if isinstance(layer, TTLoraLayer) and layer.kind == "parameter":
                    layer.ttlora_cores["default"].zero_()
            assert not torch.allclose(ours(ids).logits, adapted, atol=1e-4)

    def test_the_rank_is_the_one_that_was_asked_for(self):
        model = get_peft_model(
            mixtral(), TTLoraConfig(r=3, target_modules=LORA_USERS_LIST, rank_pattern={"experts.gate_up_proj": 6})
        )
        ranks = {
            name.rpartition(".")[2]: max(layer.ttlora_update["default"].shape.ranks)
            for name, layer in model.base_model._layers()
        }
        assert ranks == {"q_proj": 3, "v_proj": 3, "down_proj": 3, "gate_up_proj": 6}

    def test_the_saved_adapter_means_the_same(self, tmp_path):
        config = TTLoraConfig(target_modules=LORA_USERS_LIST, init_weights=False)
        asked = copy.deepcopy(config)
        model, ids = get_peft_model(mixtral(), config).eval(), torch.arange(8)[None]
        assert config == asked  # it serves for another model
        model.save_pretrained(tmp_path)
        loaded = PeftModel.from_pretrained(mixtral(), tmp_path).eval()
        assert set(loaded.peft_config["default"].target_modules) == {"q_proj", "v_proj"}
        assert sorted(loaded.peft_config["default"].target_parameters) == ["experts.down_proj", "experts.gate_up_proj"]
        plain = mixtral()
        plain.load_adapter(str(tmp_path))
        with torch.no_grad():
            torch.testing.assert_close(loaded(ids).logits, model(ids).logits)
            torch.testing.assert_close(plain(ids).logits, model(ids).logits)

    def test_an_adapter_that_was_saved_without_experts_means_what_it_meant(self, tmp_path):
        model = get_peft_model(mixtral(), TTLoraConfig(target_modules=["q_proj", "v_proj"], init_weights=False)).eval()
        model.peft_config["default"].target_modules = set(LORA_USERS_LIST)  # as it was written then
        model.save_pretrained(tmp_path)
        for trains in (False, True):
            loaded, ids = (
                PeftModel.from_pretrained(mixtral(), tmp_path, is_trainable=trains).eval(),
                torch.arange(8)[None],
            )
            assert {name.rpartition(".")[2] for name in adapted_names(loaded)} == {"q_proj", "v_proj"}
            with torch.no_grad():
                torch.testing.assert_close(loaded(ids).logits, model(ids).logits)

    @pytest.mark.parametrize(
        ("targets", "parameters"),
        [
            (
                r".*\.1\..*(q_proj|w1|w2|w3)",
                ["model.layers.1.mlp.experts.down_proj", "model.layers.1.mlp.experts.gate_up_proj"],
            ),
            ("all-linear", ["experts.down_proj", "experts.gate_up_proj", "gate.weight"]),
            (["gate", "k_proj"], ["gate.weight"]),
            (["experts.w2"], ["experts.down_proj"]),
        ],
    )
    def test_expressions_and_all_linear(self, targets, parameters):
        model = get_peft_model(mixtral(), TTLoraConfig(target_modules=targets))
        assert sorted(model.peft_config["default"].target_parameters) == parameters
        lora = get_peft_model(mixtral(), LoraConfig(target_modules=targets))
        if not isinstance(targets, list):
            adapted = adapted_names(model)
            assert adapted <= {*lora.targeted_module_names, *lora.targeted_parameter_names}

    @pytest.mark.parametrize(
        ("chosen", "layers"), [({"layers_to_transform": [1]}, {"1"}), ({"exclude_modules": r".*layers\.1\..*"}, {"0"})]
    )
    def test_some_layers_alone(self, chosen, layers):
        model = get_peft_model(mixtral(), TTLoraConfig(target_modules=LORA_USERS_LIST, **chosen))
        names = adapted_names(model)
        assert {name.split(".")[2] for name in names} == layers
        assert {name.rpartition(".")[2] for name in names} == {"q_proj", "v_proj", "gate_up_proj", "down_proj"}

    @pytest.mark.parametrize(
        ("config", "message"),
        [
            ({"target_modules": ["q_proj", "w1"]}, "target_modules has w1 and not w3: both are in the parameter model"),
            ({"rank_pattern": {"w1": 2}}, r"rank_pattern has w1, .* name experts.gate_up_proj"),
            ({"dropout": 0.1}, "no place for dropout"),
        ],
    )
    def test_what_has_no_meaning_is_refused(self, config, message):
        with pytest.raises(ValueError, match=message):
            get_peft_model(mixtral(), TTLoraConfig(**{"target_modules": LORA_USERS_LIST, **config}))

    @pytest.mark.parametrize("config", [LorettaRepConfig, BottleneckConfig, MetaTTConfig, LortaConfig])
    def test_methods_without_parameters_refuse(self, config):
        with pytest.raises(ValueError, match="'w1' is no module of the model; its linear modules are q_proj, "):
            get_peft_model(mixtral(), config(target_modules=LORA_USERS_LIST))

    @pytest.mark.parametrize(
        ("kind", "config", "linear"),
        [
            (
                "Qwen2MoeForCausalLM",
                {"num_experts": 4, "moe_intermediate_size": 8, "shared_expert_intermediate_size": 8},
                {"shared_expert"},
            ),
            ("Qwen3MoeForCausalLM", {"num_experts": 4, "moe_intermediate_size": 8}, set()),
            ("OlmoeForCausalLM", {"num_experts": 4}, set()),
            (
                "DeepseekV3ForCausalLM",
                {"n_routed_experts": 8, "moe_intermediate_size": 8, "first_k_dense_replace": 1, "kv_lora_rank": 8},
                {"mlp", "shared_experts"},
            ),
            ("JambaForCausalLM", {"num_experts": 4}, {"feed_forward"}),
            ("PhimoeForCausalLM", {"num_local_experts": 4}, set()),
            (
                "Lfm2MoeForCausalLM",
                {
                    "num_experts": 4,
                    "moe_intermediate_size": 8,
                    "num_dense_layers": 1,
                    "layer_types": ["full_attention"] * 2,
                },
                {"feed_forward"},
            ),
        ],
    )
    def test_other_families(self, kind, config, linear):
        model = on_meta(kind, **SIZES, **config)
        of_mixtral = model.config.model_type in ("phimoe", "lfm2_moe")
        gate, up, down = ("w1", "w3", "w2") if of_mixtral else ("gate_proj", "up_proj", "down_proj")
        adapted = get_peft_model(model, TTLoraConfig(target_modules=[gate, up, down]), low_cpu_mem_usage=True)
        names = adapted_names(adapted)
        assert {name.rpartition(".")[2] for name in names if ".experts." in name} == {"gate_up_proj", "down_proj"}
        # what is a linear layer still stays one
        assert {name.split(".")[-2] for name in names if name.endswith(f".{gate}")} == linear


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(6, 6)

    def forward(self, x):
        return self.fc(x)


class Blocks(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList([Block(), Block()])
        self.weight = nn.Parameter(torch.zeros(6, 6))
        self.out = nn.Linear(6, 6)


class TestNames:
    @ALL
    def test_a_name_that_is_nothing_is_refused(self, config):
        model = Blocks()
        with pytest.raises(ValueError, match=r"^'fcc' is no module of the model; its linear modules are fc, out$"):
            get_peft_model(model, config(r=2, target_modules=["fc", "fcc"]))
        adapted = get_peft_model(model, config(r=2, target_modules=["fc"]))
        with pytest.raises(ValueError, match=r"^'o' is no module of the model; its linear modules are fc, out$"):
            adapted.add_adapter("other", config(r=2, target_modules=["fc", "o"]))
        adapted.add_adapter("other", config(r=2, target_modules=["layers.0.fc", "out"]))

    @ALL
    def test_so_is_an_index(self, config):
        with pytest.raises(ValueError, match="layers_to_transform has 2, but no layer of that index has a target"):
            get_peft_model(
                nn.ModuleDict({"body": Blocks()}), config(r=2, target_modules=["fc"], layers_to_transform=[0, 2])
            )

    @ALL
    def test_what_is_left_out_is_there(self, config):
        get_peft_model(Blocks(), config(r=2, target_modules=["fc", "out"], exclude_modules=["out"]))
        get_peft_model(
            nn.ModuleDict({"body": Blocks()}), config(r=2, target_modules=["fc", "out"], layers_to_transform=[0])
        )

    def test_so_is_a_parameter(self):
        config = TTLoraConfig(target_modules=["fc"], target_parameters=["gate_up_proj"])
        with pytest.raises(ValueError, match="target_parameters has 'gate_up_proj', which is no parameter"):
            get_peft_model(Blocks(), config)

    @ALL
    def test_a_saved_adapter_loads_with_names_that_were_nothing(self, config, tmp_path):
        model = get_peft_model(
            Blocks(),
            config(r=2, target_modules=["fc"], train_layer_norms=False)
            if config in (LorettaRepConfig, BottleneckConfig)
            else config(r=2, target_modules=["fc"]),
        )
        model.peft_config["default"].target_modules = {"fc", "fcc"}
        model.save_pretrained(tmp_path)
        for trains in (False, True):
            loaded = PeftModel.from_pretrained(Blocks(), tmp_path, is_trainable=trains)
            loaded.load_adapter(tmp_path, "other", is_trainable=trains)

    @pytest.mark.parametrize(
        ("config", "expected"),
        [
            (LorettaRepConfig(), {"query", "value"}),
            (MetaTTConfig(), {"query", "value"}),
            (TTLoraConfig(), {"value", "intermediate.dense", "output.dense"}),
        ],
    )
    def test_default_targets_of_which_a_model_has_some(self, config, expected):
        sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
        for _ in range(2):
            get_peft_model(tf.ViTModel(tf.ViTConfig(**sizes, image_size=8, patch_size=4)), config)
        # what was the default for one model is not asked of the next
        bert = tf.BertModel(tf.BertConfig(**sizes, vocab_size=16))
        assert get_peft_model(bert, config).peft_config["default"].target_modules == expected


SSM = {"num_hidden_layers": 2, "hidden_size": 16, "vocab_size": 64}


class TestWeightsThatAreReadPastAnAdapter:
    @ALL
    @pytest.mark.parametrize("target", ["out_proj", "x_proj", "dt_proj"])
    def test_mamba(self, config, target):
        model = tf.MambaForCausalLM(tf.MambaConfig(**SSM, state_size=4))
        with pytest.raises(ValueError, match=f"mixer.{target} cannot be adapted: MambaMixer reads its weight past"):
            get_peft_model(model, config(r=2, target_modules=["in_proj", target]))
        adapted = get_peft_model(model, config(r=2, target_modules=["in_proj"]))
        assert adapted(torch.arange(5)[None]).logits.isfinite().all()

    @pytest.mark.parametrize(
        ("kind", "config", "targets"),
        [
            ("MambaForCausalLM", {**SSM, "state_size": 4}, ["conv1d", "out_proj"]),
            ("Mamba2ForCausalLM", {**SSM, "num_heads": 4, "head_dim": 8, "n_groups": 1}, ["conv1d", "out_proj"]),
            ("FalconMambaForCausalLM", {**SSM, "state_size": 4}, ["conv1d", "out_proj"]),
            ("JambaForCausalLM", {**SIZES, "num_experts": 2}, ["conv1d", "dt_proj"]),
            ("Lfm2ForCausalLM", {**SIZES, "layer_types": ["conv", "full_attention"]}, ["conv.conv"]),
            (
                "WavLMModel",
                {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2},
                ["q_proj", "out_proj"],
            ),
        ],
    )
    def test_its_like(self, kind, config, targets):
        for target in targets:
            with pytest.raises(ValueError, match=f"{target} cannot be adapted: .* reads its weight past any adapter"):
                get_peft_model(
                    on_meta(kind, **config), TTLoraConfig(r=2, target_modules=[target]), low_cpu_mem_usage=True
                )

    def test_the_inside_of_an_attention(self):
        model = nn.ModuleDict({"attention": nn.MultiheadAttention(8, 2)})
        with pytest.raises(ValueError, match=r"attention.out_proj cannot be adapted: MultiheadAttention reads"):
            get_peft_model(model, TTLoraConfig(target_modules=["out_proj"]))
        get_peft_model(model, TTLoraConfig(target_modules=["attention"]))

    def test_a_module_whose_weight_is_tied_or_asked_for_its_dtype_is_none(self):
        class Tied(nn.Module):
            def __init__(self):
                super().__init__()
                self.embed, self.head = nn.Embedding(8, 4), nn.Linear(4, 8)
                self.head.weight = self.embed.weight

            def forward(self, x):
                return self.head(self.embed(x).to(self.head.weight.dtype))

        get_peft_model(Tied(), TTLoraConfig(r=2, target_modules=["embed", "head"]))

    def test_a_saved_adapter_loads(self, tmp_path):
        model = tf.MambaForCausalLM(tf.MambaConfig(**SSM, state_size=4))
        adapted = get_peft_model(model, TTLoraConfig(r=2, target_modules=["in_proj", "x_proj"], inference_mode=True))
        adapted.save_pretrained(tmp_path)
        PeftModel.from_pretrained(tf.MambaForCausalLM(tf.MambaConfig(**SSM, state_size=4)), tmp_path)
