"""PEFT's `hotswap_adapter` with adapters of TT-LoRA: what acts afterwards is what PEFT would have loaded."""

import copy
import warnings

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.utils.hotswap import hotswap_adapter
from torch import nn

from ttlora import TTLoraConfig

OPTIONS = {"target_modules": ["q_proj", "v_proj"], "init_weights": False, "task_type": "CAUSAL_LM"}
CONFIGS = {
    "first": TTLoraConfig(**OPTIONS),
    "alike": TTLoraConfig(**OPTIONS),
    "rank": TTLoraConfig(**OPTIONS, r=5),
    "scale": TTLoraConfig(**OPTIONS, alpha=30.0),
    "fewer": TTLoraConfig(**OPTIONS, layers_to_transform=[1]),
    "fewer and scaled": TTLoraConfig(**OPTIONS, layers_to_transform=[1], alpha=30.0),
    "more": TTLoraConfig(**{**OPTIONS, "target_modules": ["q_proj", "v_proj", "o_proj"]}),
}


@pytest.fixture
def base(architectures):
    return architectures["llama"].build()


@pytest.fixture
def folders(base, tmp_path):
    for name, config in CONFIGS.items():
        get_peft_model(copy.deepcopy(base), config).save_pretrained(tmp_path / name)
    return {name: tmp_path / name for name in CONFIGS}


@pytest.fixture
def loaded(base, folders):
    return lambda name: PeftModel.from_pretrained(copy.deepcopy(base), folders[name])


@pytest.fixture
def logits(architectures):
    def call(model):
        with torch.no_grad():
            return model(**architectures["llama"].inputs).logits

    return call


def swap(model, folder):
    hotswap_adapter(model, folder, adapter_name="default", torch_device="cpu")


@pytest.mark.parametrize("name", ["alike", "rank", "scale", "fewer"])
def test_the_other_adapter_acts(loaded, folders, logits, name):
    model = loaded("first")
    before = logits(model)
    swap(model, folders[name])
    assert torch.equal(logits(model), logits(loaded(name)))
    swap(model, folders["first"])
    assert torch.equal(logits(model), before)


@pytest.mark.parametrize("name", ["alike", "rank", "scale", "fewer"])
def test_what_is_saved_afterwards_is_the_other_adapter(loaded, base, folders, logits, tmp_path, name):
    model = loaded("first")
    swap(model, folders[name])
    model.save_pretrained(tmp_path / "again")
    again = PeftModel.from_pretrained(copy.deepcopy(base), tmp_path / "again")
    assert torch.equal(logits(again), logits(loaded(name)))


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("more", RuntimeError, r"unexpected keys found: .*o_proj\.ttlora_cores\.default"),
        ("fewer and scaled", RuntimeError, "2 of 4 layers, and other shapes or scales"),
    ],
)
def test_a_refused_adapter_changes_nothing(loaded, folders, logits, name, error, message):
    model = loaded("first")
    before = logits(model)
    with pytest.raises(error, match=message):
        swap(model, folders[name])
    assert torch.equal(logits(model), before)


def test_an_adapter_of_other_sizes(loaded, architectures, logits, tmp_path):
    config = copy.copy(architectures["llama"].config)
    config.num_key_value_heads = 4
    get_peft_model(type(architectures["llama"].build())(config), CONFIGS["first"]).save_pretrained(tmp_path / "other")
    model = loaded("first")
    before = logits(model)
    with pytest.raises(
        ValueError, match="v_proj is 12 x 24, but this adapter was made for a model in which it is 24 x 24"
    ):
        swap(model, tmp_path / "other")
    assert torch.equal(logits(model), before)


def test_not_when_merged(loaded, folders):
    model = loaded("first")
    model.merge_adapter()
    with pytest.raises(ValueError, match="merged: unmerge it first"):
        swap(model, folders["alike"])


@pytest.mark.parametrize("names", [("first", "start"), ("start", "first")])
def test_not_from_a_start_of_its_own(base, folders, logits, tmp_path, names):
    config = TTLoraConfig(**{**OPTIONS, "init_weights": "dota"})
    get_peft_model(copy.deepcopy(base), config).save_pretrained(tmp_path / "start")
    model = PeftModel.from_pretrained(copy.deepcopy(base), tmp_path / names[0])
    before = logits(model)
    with pytest.raises(ValueError, match="init_weights='dota'"):
        swap(model, tmp_path / names[1])
    assert torch.equal(logits(model), before)


def test_another_method(loaded, base, folders, tmp_path):
    get_peft_model(copy.deepcopy(base), LoraConfig(target_modules=["q_proj"])).save_pretrained(tmp_path / "lora")
    with pytest.raises(ValueError, match="Incompatible PEFT types"):
        swap(loaded("first"), tmp_path / "lora")


def test_loras_are_swapped_by_peft(base, logits, tmp_path):
    for seed, name in enumerate(("one", "two")):
        torch.manual_seed(seed)
        config = LoraConfig(target_modules=["q_proj"], init_lora_weights=False)
        get_peft_model(copy.deepcopy(base), config).save_pretrained(tmp_path / name)
    model, expected = (PeftModel.from_pretrained(copy.deepcopy(base), tmp_path / name) for name in ("one", "two"))
    swap(model, tmp_path / "two")
    torch.testing.assert_close(logits(model), logits(expected))


@pytest.mark.usefixtures("unchecked_shapes")
def test_a_compiled_model_stays_compiled(loaded, folders, logits):
    graphs = []

    def count(graph: nn.Module, _):
        graphs.append(graph)
        return graph

    model = torch.compile(loaded("first"), backend=count, fullgraph=True)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)
            logits(model)
            for name in ("alike", "fewer", "first"):
                swap(model, folders[name])
                torch.testing.assert_close(logits(model), logits(loaded(name)))
        assert len(graphs) == 1
        # other shapes make another graph
        swap(model, folders["rank"])
        torch.testing.assert_close(logits(model), logits(loaded("rank")))
        assert len(graphs) == 2
    finally:
        torch._dynamo.reset()
