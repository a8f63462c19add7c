"""Embeddings, convolutions, attention and experts: every kind of layer that PEFT's LoRA takes besides linear ones."""

import copy
import warnings

import pytest
import torch
from peft import PeftConfig, PeftModel, get_peft_model
from safetensors import safe_open
from torch import nn
from transformers import (
    GptOssConfig,
    GptOssForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
)
from transformers.models.gemma3.modeling_gemma3 import Gemma3TextScaledWordEmbedding

from ttlora import TTLoraConfig
from ttlora.tuners.tt_lora import TTLoraLayer, saved_kind, saved_update

KINDS = {
    "embedding": (lambda: nn.Embedding(30, 12), lambda: torch.randint(0, 30, (4, 7))),
    "embedding with padding": (lambda: nn.Embedding(30, 12, padding_idx=0), lambda: torch.randint(0, 30, (4, 7))),
    "scaled embedding": (
        lambda: Gemma3TextScaledWordEmbedding(30, 12, padding_idx=0, embed_scale=3.5),
        lambda: torch.randint(0, 30, (4, 7)),
    ),
    "conv1d": (lambda: nn.Conv1d(6, 10, 3, stride=2, padding=1), lambda: torch.randn(4, 6, 11)),
    "conv2d": (lambda: nn.Conv2d(6, 10, (3, 2), dilation=2, bias=False), lambda: torch.randn(4, 6, 9, 8)),
    "conv2d, same, circular": (
        lambda: nn.Conv2d(6, 10, 3, padding="same", padding_mode="circular"),
        lambda: torch.randn(4, 6, 9, 8),
    ),
    "conv2d in groups": (lambda: nn.Conv2d(6, 9, 3, groups=3), lambda: torch.randn(4, 6, 9, 8)),
    "depthwise": (lambda: nn.Conv2d(6, 6, 3, groups=6, padding=1), lambda: torch.randn(4, 6, 9, 8)),
    "conv3d": (lambda: nn.Conv3d(4, 6, 2), lambda: torch.randn(4, 4, 5, 4, 3)),
}


def adapted(base, **config):
    settings = {"init_weights": False, "target_modules": ["0"], **config}
    return get_peft_model(nn.Sequential(base), TTLoraConfig(**settings))


def layer_of(model):
    return next(module for module in model.modules() if isinstance(module, TTLoraLayer))


@pytest.fixture(params=KINDS, ids=str)
def kind(request):
    torch.manual_seed(0)
    base, inputs = KINDS[request.param]
    return base(), inputs()


class TestEveryKind:
    def test_a_zero_update_leaves_every_bit(self, kind):
        base, x = kind
        expected = base(x)
        assert torch.equal(adapted(base, init_weights=True)(x), expected)

    def test_output_and_gradient_are_those_of_the_updated_weight(self, kind):
        base, x = kind
        base = base.double()
        x = x.double() if x.is_floating_point() else x
        layer = layer_of(adapted(base, core_size=None))
        cores = layer.ttlora_cores["default"]
        assert layer.get_delta_weight("default").shape == layer.get_base_layer().weight.shape
        reference = torch.func.functional_call(
            base, {"weight": base.weight.detach() + layer.get_delta_weight("default")}, (x,)
        )
        y = layer(x)
        torch.testing.assert_close(y, reference)
        direction = torch.randn_like(y)
        (got,), (wanted,) = (torch.autograd.grad(out, cores, direction) for out in (y, reference))
        torch.testing.assert_close(got, wanted)

    def test_merge_unmerge_disable(self, kind):
        base, x = kind
        model = adapted(base)
        weight = base.weight.detach().clone()
        with torch.no_grad():
            plain, expected = copy.deepcopy(base)(x), model(x)
            assert (expected - plain).norm() > 1e-3 * plain.norm()
            with model.disable_adapter():
                assert torch.equal(model(x), plain)
            model.merge_adapter(safe_merge=True)
            torch.testing.assert_close(model(x), expected, rtol=1e-5, atol=1e-5)
            model.unmerge_adapter()
            torch.testing.assert_close(layer_of(model).get_base_layer().weight, weight)
            merged = model.merge_and_unload()
            assert not any(isinstance(module, TTLoraLayer) for module in merged.modules())
            torch.testing.assert_close(merged(x), expected, rtol=1e-5, atol=1e-5)

    def test_save_and_load(self, kind, tmp_path):
        base, x = kind
        fresh = nn.Sequential(copy.deepcopy(base))
        model = adapted(base)
        model.save_pretrained(tmp_path)
        loaded = PeftModel.from_pretrained(fresh, tmp_path)
        assert torch.equal(loaded(x), model(x))

    def test_a_mixed_batch(self, kind):
        base, x = kind
        model = adapted(base).eval()
        model.add_adapter("other", TTLoraConfig(target_modules=["0"], r=2, init_weights=False))
        names = ["default", "__base__", "other", "default"]
        with torch.no_grad():
            y = model(x, adapter_names=names)
            for row, name in enumerate(names):
                if name == "__base__":
                    with model.disable_adapter():
                        expected = model(x)
                else:
                    model.set_adapter(name)
                    expected = model(x)
                torch.testing.assert_close(y[row], expected[row])

    def test_bf16(self, kind):
        base, x = kind
        base = base.bfloat16()
        y = adapted(base)(x.bfloat16() if x.is_floating_point() else x)
        assert y.dtype == torch.bfloat16
        y.float().square().sum().backward()


def test_groups_share_a_and_cost_no_more():
    grouped, plain = (layer_of(adapted(nn.Conv2d(8, 8, 3, groups=groups))) for groups in (4, 1))
    assert grouped.in_features == 2 * 9
    assert grouped.ttlora_cores["default"].numel() < plain.ttlora_cores["default"].numel()


class TestEmbeddingsOfModels:
    @pytest.mark.parametrize("tied", [True, False])
    def test_merging_changes_the_embedding_alone(self, tied):
        x = torch.randint(0, 40, (2, 5))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # PEFT says of every tied model that merging unties it
            config = TTLoraConfig(target_modules=["embed_tokens"], init_weights=False)
            model = get_peft_model(llama(tied), config).eval()
            with torch.no_grad():
                expected = model(x).logits
                merged = model.merge_and_unload()
                torch.testing.assert_close(merged(x).logits, expected, rtol=1e-5, atol=1e-5)
        assert merged.config.tie_word_embeddings is False

    def test_padding_has_no_gradient(self):
        layer = layer_of(adapted(nn.Embedding(6, 4, padding_idx=0), shape=[4, 6], r=1, core_size=None))
        layer(torch.tensor([[0, 0, 3]])).sum().backward()
        of_tokens = layer.ttlora_cores["default"].grad[4:]
        assert of_tokens[0] == 0
        assert of_tokens[3] != 0


def llama(tied):
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=40, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
        tie_word_embeddings=tied,
    )  # fmt: skip
    return LlamaForCausalLM(config)


class Attention(nn.Module):
    def __init__(self, batch_first=True):
        super().__init__()
        self.attention = nn.MultiheadAttention(12, 3, batch_first=batch_first)
        self.head = nn.Linear(12, 3)

    def forward(self, x):
        return self.head(self.attention(x, x, x)[0])


class TestAttention:
    config = TTLoraConfig(target_modules=["attention"], init_weights=False)

    def test_both_projections_are_updated(self):
        plain = Attention()
        model = get_peft_model(copy.deepcopy(plain), self.config)
        layer = model.base_model.model.attention
        assert list(layer.get_delta_weight("default").shape) == [36, 12]
        attention = plain.attention
        with torch.no_grad():
            attention.in_proj_weight.add_(layer.get_delta_weight("default"))
            attention.out_proj.weight += layer.out_proj.get_delta_weight("default")
        x = torch.randn(2, 5, 12)
        torch.testing.assert_close(model(x), plain(x))

    def test_both_trains_get_gradients_and_the_weights_none(self):
        model = get_peft_model(Attention(), self.config)
        model(torch.randn(2, 5, 12)).square().sum().backward()
        with_gradient = {name for name, weight in model.named_parameters() if weight.grad is not None}
        assert with_gradient == {
            "base_model.model.attention.ttlora_cores.default",
            "base_model.model.attention.base_layer.out_proj.ttlora_cores.default",
        }

    def test_merge_unload_save_load(self, tmp_path):
        plain, x = Attention().eval(), torch.randn(2, 5, 12)
        model = get_peft_model(copy.deepcopy(plain), self.config).eval()
        with torch.no_grad():
            expected = model(x)
            model.save_pretrained(tmp_path)
            loaded = PeftModel.from_pretrained(copy.deepcopy(plain), tmp_path)
            assert torch.equal(loaded(x), expected)
            with model.disable_adapter():
                torch.testing.assert_close(model(x), plain(x))
            model.merge_adapter()
            torch.testing.assert_close(model(x), expected, rtol=1e-5, atol=1e-5)
            model.unmerge_adapter()
            assert list(model.state_dict()) == list(get_peft_model(copy.deepcopy(plain), self.config).state_dict())
            merged = model.merge_and_unload()
            assert list(merged.state_dict()) == list(plain.state_dict())
            torch.testing.assert_close(merged(x), expected, rtol=1e-5, atol=1e-5)
            unloaded = loaded.unload()
            torch.testing.assert_close(unloaded(x), plain(x))

    def test_inside_of_torchs_encoder_layer(self):
        # its fast path passes our forward by and hands the plain weights to a kernel
        plain = nn.TransformerEncoderLayer(12, 3, 16, batch_first=True).eval()
        model = get_peft_model(plain, TTLoraConfig(target_modules=["self_attn"], init_weights=False)).eval()
        x = torch.randn(2, 5, 12)
        slow = model(x)
        with torch.no_grad():
            torch.testing.assert_close(model(x), slow)
            with model.disable_adapter():
                assert not torch.allclose(model(x), slow)

    def test_what_it_cannot_do(self):
        model = get_peft_model(Attention(), self.config).eval()
        with pytest.raises(TypeError, match="no mixed adapter batches"):
            model(torch.randn(2, 5, 12), adapter_names=["default", "__base__"])
        other = nn.Sequential(nn.MultiheadAttention(12, 3, kdim=8, vdim=8))
        with pytest.raises(ValueError, match="kdim or vdim"):
            get_peft_model(other, TTLoraConfig(target_modules=["0"]))


def mixtral(experts=4):
    torch.manual_seed(0)
    config = MixtralConfig(
        vocab_size=40, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, num_local_experts=experts, num_experts_per_tok=2,
    )  # fmt: skip
    return MixtralForCausalLM(config).eval()


def gpt_oss():
    torch.manual_seed(0)
    config = GptOssConfig(
        vocab_size=40, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, head_dim=8, num_local_experts=4, num_experts_per_tok=2,
    )  # fmt: skip
    return GptOssForCausalLM(config).eval()


PARAMETERS = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]


@pytest.mark.parametrize("build", [mixtral, gpt_oss])
class TestExperts:
    def config(self, **settings):
        settings = {"init_weights": False, "target_modules": [], "target_parameters": PARAMETERS, **settings}
        return TTLoraConfig(**settings)

    def tokens(self):
        return torch.randint(0, 40, (2, 9))

    def test_a_zero_update_leaves_every_bit(self, build):
        x = self.tokens()
        expected = build()(x).logits
        assert torch.equal(get_peft_model(build(), self.config(init_weights=True))(x).logits, expected)

    def test_merge_unload_and_disable(self, build):
        x, plain = self.tokens(), build()
        model = get_peft_model(build(), self.config()).eval()
        with torch.no_grad():
            expected = model(x).logits
            assert not torch.allclose(expected, plain(x).logits, atol=1e-3)
            with model.disable_adapter():
                assert torch.equal(model(x).logits, plain(x).logits)
            model.merge_adapter()
            torch.testing.assert_close(model(x).logits, expected, rtol=1e-4, atol=1e-5)
            model.unmerge_adapter()
            torch.testing.assert_close(model(x).logits, expected, rtol=1e-4, atol=1e-5)
            merged = model.merge_and_unload()
            assert list(merged.state_dict()) == list(plain.state_dict())
            torch.testing.assert_close(merged(x).logits, expected, rtol=1e-4, atol=1e-5)

    def test_gradients_are_those_of_the_updated_weight(self, build):
        x, plain = self.tokens(), build().double()
        plain.set_experts_implementation("eager")  # the grouped product knows no float64
        weights = {name: weight.detach().clone() for name, weight in plain.named_parameters()}
        model = get_peft_model(copy.deepcopy(plain), self.config(core_size=None))
        layers = {
            name: module for name, module in model.base_model.model.named_modules() if isinstance(module, TTLoraLayer)
        }
        cores = [layer.ttlora_cores["default"] for layer in layers.values()]
        for name, layer in layers.items():
            full_name = f"{name.removesuffix('.base_layer')}.{layer.parameter_name}"
            weights[full_name] = weights[full_name] + layer.get_delta_weight("default")
        losses = model(x).logits.square().sum(), torch.func.functional_call(plain, weights, (x,)).logits.square().sum()
        torch.testing.assert_close(*losses)
        for got, wanted in zip(*(torch.autograd.grad(loss, cores) for loss in losses), strict=True):
            assert got.norm() > 0
            torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-4 * float(wanted.abs().max()))

    def test_save_and_load(self, build, tmp_path):
        x = self.tokens()
        model = get_peft_model(build(), self.config()).eval()
        model.save_pretrained(tmp_path)
        loaded = PeftModel.from_pretrained(build(), tmp_path).eval()
        assert torch.equal(loaded(x).logits, model(x).logits)

    def test_two_adapters(self, build):
        x = self.tokens()
        model = get_peft_model(build(), self.config()).eval()
        model.add_adapter("other", self.config(r=2))
        first = model(x).logits
        model.set_adapter("other")
        second = model(x).logits
        assert not torch.allclose(first, second)
        model.delete_adapter("default")
        assert torch.equal(model(x).logits, second)


def test_experts_share_all_but_a_small_matrix_each():
    def parameters(experts):
        config = TTLoraConfig(target_modules=[], target_parameters=["mlp.experts.down_proj"], r=3)
        model = get_peft_model(mixtral(experts), config)
        return layer_of(model).ttlora_cores["default"].numel()

    assert parameters(8) - parameters(4) == 4 * 3 * 3


def test_parameters_alone_in_a_model_of_no_known_type(mlp, tmp_path):
    config = TTLoraConfig(target_parameters=["0.weight"], init_weights=False)
    model = get_peft_model(mlp(), config)
    assert model.targeted_module_names == []
    assert model.targeted_parameter_names == ["0.weight"]
    x = torch.randn(3, 16)
    expected = model(x)
    assert not torch.allclose(expected, mlp()(x))
    model.save_pretrained(tmp_path)
    torch.testing.assert_close(PeftModel.from_pretrained(mlp(), tmp_path)(x), expected)
    torch.testing.assert_close(model.merge_and_unload()(x), expected)
    with pytest.raises(ValueError, match="specify `target_modules`"):
        get_peft_model(mlp(), TTLoraConfig())


def test_every_expert_has_its_own_update():
    config = TTLoraConfig(target_modules=[], target_parameters=["mlp.experts.down_proj"], r=3, init_weights=False)
    delta = layer_of(get_peft_model(mixtral(), config)).get_delta_weight("default")
    assert list(delta.shape) == [4, 16, 24]
    for one in range(4):
        assert torch.linalg.matrix_rank(delta[one]) == 3
        for other in range(one):
            assert not torch.allclose(delta[one], delta[other], rtol=0.1)
    # all experts write into, and read from, the same three directions
    assert torch.linalg.matrix_rank(delta.reshape(64, 24), rtol=1e-4) == 3
    assert torch.linalg.matrix_rank(torch.cat(list(delta), dim=1), rtol=1e-4) == 3


def test_the_config_says_which_experts_it_was_made_for(tmp_path):
    config = TTLoraConfig(target_modules=[], target_parameters=PARAMETERS)
    model = get_peft_model(mixtral(), config)
    model.save_pretrained(tmp_path)
    assert model.peft_config["default"].weight_sizes == {"down_proj": [4, 16, 24], "gate_up_proj": [4, 48, 16]}
    with pytest.raises(ValueError, match=r"is 8 x 48 x 16, but this adapter was made for .* 4 x 48"):
        PeftModel.from_pretrained(mixtral(8), tmp_path)


def test_a_saved_adapter_says_by_itself_what_its_cores_mean(tmp_path):
    config = TTLoraConfig(
        target_modules=["embed_tokens", "q_proj"], target_parameters=PARAMETERS, init_weights=False,
        shape_pattern={"q_proj": [4, 4, 16]}, rank_pattern={"down_proj": 2, "gate_up_proj": 3},
    )  # fmt: skip
    model = get_peft_model(mixtral(), config)
    model.save_pretrained(tmp_path)
    saved = PeftConfig.from_pretrained(tmp_path)
    assert saved.target_parameters == ["mlp.experts.down_proj", "mlp.experts.gate_up_proj"]
    kinds = set()
    with safe_open(tmp_path / "adapter_model.safetensors", framework="pt") as file:
        for key in file.keys():  # noqa: SIM118
            if ".ttlora_cores" in key:
                module = key.removeprefix("base_model.model.").removesuffix(".ttlora_cores")
                update, layer = saved_update(saved, module), model.base_model.model.get_submodule(module)
                assert update == layer.ttlora_update["default"]
                torch.testing.assert_close(
                    update.acting_train(file.get_tensor(key)).norm(), layer.get_delta_weight("default").norm()
                )
                kinds.add((saved_kind(saved, module), layer.kind))
    assert kinds == {("parameter", "parameter"), ("embedding", "embedding"), ("linear", "linear")}


def test_a_parameter_cannot_be_dropped_or_mixed():
    with pytest.raises(ValueError, match=r"dropout=0\.1; set it to 0"):
        get_peft_model(mixtral(), TTLoraConfig(target_modules=[], target_parameters=PARAMETERS, dropout=0.1))
    model = get_peft_model(mixtral(), TTLoraConfig(target_modules=[], target_parameters=PARAMETERS)).eval()
    with pytest.raises(ValueError, match="no mixed adapter batches"):
        model(torch.randint(0, 40, (2, 9)), adapter_names=["default", "__base__"])


def test_parameters_and_modules_together():
    config = TTLoraConfig(target_modules=["q_proj"], target_parameters=["mlp.experts.down_proj"], init_weights=False)
    model = get_peft_model(mixtral(), config)
    kinds = {type(module).__name__ for module in model.modules() if isinstance(module, TTLoraLayer)}
    assert kinds == {"TTLoraLinear", "ParamWrapper"}


def test_a_parameter_that_is_no_matrix():
    with pytest.raises(ValueError, match=r"parameter weight has the sizes \[16\]"):
        get_peft_model(mixtral(), TTLoraConfig(target_modules=[], target_parameters=["input_layernorm.weight"]))
