"""Bases that bitsandbytes and torchao hold in 8 and 4 bits, on a CPU."""

import pytest
import torch
from bitsandbytes.functional import _convert_weight_packed_for_cpu
from bitsandbytes.nn import Linear4bit, Linear8bitLt
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn
from torchao.quantization import Int8WeightOnlyConfig, IntxWeightOnlyConfig, PerGroup
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, LlamaConfig, LlamaForCausalLM, TorchAoConfig

from tests.ecosystem.conftest import ATTENTION, cores_of, logits, train
from ttlora import TTLoraConfig
from ttlora.tuners.tt_lora import TTLoraLayer

# Of torchao's two int4 configurations, this is the one that a CPU computes.
INT4 = IntxWeightOnlyConfig(weight_dtype=torch.int4, granularity=PerGroup(16))  # type: ignore[attr-defined]

# the configuration, the layer it makes, and the relative error of a weight that is written back
KINDS = {
    "bitsandbytes 8 bit": (lambda: BitsAndBytesConfig(load_in_8bit=True), Linear8bitLt, 0.02),
    "bitsandbytes 4 bit": (lambda: BitsAndBytesConfig(load_in_4bit=True), Linear4bit, 0.2),
    "bitsandbytes nf4": (
        lambda: BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True),
        Linear4bit,
        0.2,
    ),
    "torchao int8": (lambda: TorchAoConfig(Int8WeightOnlyConfig()), nn.Linear, 0.02),
    "torchao int4": (lambda: TorchAoConfig(INT4), nn.Linear, 0.2),
}


@pytest.fixture(params=KINDS)
def kind(request):
    return request.param


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    """Of rows as long as a block that bitsandbytes quantises: on some processors it reads shorter ones wrongly."""
    folder = tmp_path_factory.mktemp("llama")
    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    LlamaForCausalLM(LlamaConfig(vocab_size=24, num_key_value_heads=4, **sizes)).save_pretrained(folder)
    return folder


@pytest.fixture
def load(kind, llama):
    def build():
        config = KINDS[kind][0]()
        model = AutoModelForCausalLM.from_pretrained(
            llama, quantization_config=config, dtype=torch.float32, device_map="cpu"
        )
        for layer in model.modules():
            if isinstance(layer, Linear4bit):
                # on some processors bitsandbytes would pack weights anew and compute in bfloat16
                layer.support_avx512bf16_for_cpu = False
        return model

    return build


def layers_of(model):
    return {name: module for name, module in model.named_modules() if isinstance(module, TTLoraLayer)}


def relative(got, expected):
    return ((got - expected).norm() / expected.norm()).item()


def test_an_update_that_is_added_where_the_output_lies_is_one_of_its_own(load, random_update):
    model = get_peft_model(load(), random_update())
    layer = next(iter(layers_of(model).values()))
    dy = torch.randn(2, 3, layer.out_features)
    found = []
    for forward in (layer, lambda x: TTLoraLayer._adapted_forward(layer, x, ["default"])):
        x = torch.randn(2, 3, 64, generator=torch.Generator().manual_seed(0)).requires_grad_()
        y = forward(x)
        y.backward(dy)
        found.append((y.detach(), x.grad, layer.ttlora_cores["default"].grad))
        layer.zero_grad()
    for in_place, two in zip(*found, strict=True):
        torch.testing.assert_close(in_place, two, rtol=1e-4, atol=1e-5)


def test_it_starts_as_the_base_trains_and_comes_back(load, kind, tmp_path):
    base = logits(load())
    model = get_peft_model(load(), TTLoraConfig())
    assert torch.equal(logits(model), base)
    assert all(type(layer.base_layer) is KINDS[kind][1] for layer in layers_of(model).values())
    before = cores_of(model)

    losses = train(model)
    assert losses[-1] < losses[0] - 0.1
    assert all(not torch.equal(before[name], cores) for name, cores in cores_of(model).items())
    with model.disable_adapter():
        assert torch.equal(logits(model), base)

    expected = logits(model)
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(load(), tmp_path)
    assert torch.equal(logits(loaded), expected)
    assert relative(expected, base) > 0.1


def test_training_lowers_the_loss_as_lora_does(load):
    ours = train(get_peft_model(load(), TTLoraConfig(**ATTENTION)), rate=1e-2)
    lora = train(get_peft_model(load(), LoraConfig(target_modules=ATTENTION["target_modules"])), rate=1e-2)
    assert ours[0] == lora[0]
    assert ours[-1] < lora[-1] + 0.05


def test_merging_writes_the_update_into_the_quantised_weight(load, kind, random_update):
    error = KINDS[kind][2]
    base = logits(load())
    model = get_peft_model(load(), random_update(alpha=2))
    expected = logits(model)
    weights = {name: layer.get_base_weight().clone() for name, layer in layers_of(model).items()}
    kinds = {name: type(layer.base_layer.weight) for name, layer in layers_of(model).items()}
    deltas = {name: layer.get_delta_weight("default") for name, layer in layers_of(model).items()}

    model.merge_adapter(safe_merge=True)
    for name, layer in layers_of(model).items():
        assert type(layer.base_layer) is KINDS[kind][1]
        assert type(layer.base_layer.weight) is kinds[name]
        assert relative(deltas[name], weights[name]) > 3 * error
        assert relative(layer.get_base_weight(), weights[name] + deltas[name]) < error
    assert relative(logits(model), expected) < 0.5 * relative(base, expected)

    model.unmerge_adapter()
    for name, layer in layers_of(model).items():
        back = layer.get_base_weight() - weights[name]
        assert back.norm() < 2 * error * (weights[name] + deltas[name]).norm()
    merged = model.merge_and_unload()
    assert not layers_of(merged)
    assert relative(logits(merged), expected) < 0.5 * relative(base, expected)


def test_a_weight_that_bitsandbytes_has_packed_for_the_processor(random_update):
    """As it does in the first inference on a processor with AVX512-BF16, so that PEFT would read another matrix."""
    torch.manual_seed(0)
    model = nn.Sequential(Linear4bit(128, 96, bias=False, quant_type="nf4").to("cpu"))
    config = random_update(target_modules=["0"])
    model = get_peft_model(model, config)
    (layer,) = layers_of(model).values()
    weight, delta = layer.get_base_weight().clone(), layer.get_delta_weight("default")
    packed = layer.base_layer.weight
    packed.data, packed.quant_state = _convert_weight_packed_for_cpu(packed.data, packed.quant_state)
    assert relative(layer.get_base_weight(), weight) < 0.01
    packed.data, packed.quant_state = _convert_weight_packed_for_cpu(packed.data, packed.quant_state)
    layer.merge()
    assert relative(layer.get_base_weight(), weight + delta) < 0.2
