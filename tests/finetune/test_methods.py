import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForSequenceClassification

from ttlora import TTLoraConfig
from ttlora.errors import UserError
from ttlora.finetune.base import load_base
from ttlora.finetune.methods import METHODS, count_parameters, find_method
from ttlora.finetune.recipe import Recipe
from ttlora.finetune.tasks import Task

TASK = Task("file", ("text",), labels=(0, 1))
IDS = torch.tensor([[2, 5, 6, 3]])


def adapt(folder, method: str, **keys):
    recipe = find_method(method).complete(Recipe(model=str(folder), task="file", output="o", method=method, **keys))
    base = load_base(str(folder), TASK, dtype=find_method(method).base_dtype)
    return base, find_method(method).adapt(base, recipe)


def trained_names(model) -> set[str]:
    return {name.removeprefix("base_model.model.") for name, weight in model.named_parameters() if weight.requires_grad}


def test_counts_of_every_method(bert):
    counts = {}
    for method in METHODS:
        base, model = adapt(bert, method)
        counts[method] = count_parameters(model, base.head)
    whole = sum(weight.numel() for weight in load_base(str(bert), TASK).model.parameters())
    head = 32 * 2 + 2
    # r 8, two factors of 32, query and value of two layers
    assert counts["lora"] == (8 * (32 + 32) * 4, head)
    assert counts["head"] == (0, head)
    assert counts["full"] == (whole - head, head)
    assert counts["tt-lora"][1] == head
    assert 0 < counts["tt-lora"][0] < counts["lora"][0]


def test_tt_lora_takes_shapes_ranks_and_targets(bert):
    base, model = adapt(bert, "tt-lora", shape="4,8,8,4", r="2,3,2", targets="query")
    # 1*4*2 + 2*8*3 + 3*8*2 + 2*4*1 a matrix, one matrix in each of two layers
    assert count_parameters(model, base.head)[0] == 2 * (8 + 48 + 48 + 8)
    config = model.peft_config["default"]
    assert isinstance(config, TTLoraConfig)
    assert config.target_modules == ["query"]


def test_shapes_by_module(llama):
    base, model = adapt(llama, "tt-lora", shape="q_proj=32,32 v_proj=16,32", r=1)
    assert count_parameters(model, base.head)[0] == 2 * (64 + 48)


def test_all_linear_leaves_the_head_out(bert):
    _, model = adapt(bert, "lora", targets="all-linear")
    assert any("intermediate.dense.lora_A" in name for name in trained_names(model))
    assert not any("classifier" in name and "lora_" in name for name in trained_names(model))


def test_what_trains_is_float32_on_a_half_precision_base(llama):
    for method in ("tt-lora", "lora", "head"):
        _, model = adapt(llama, method)
        assert {weight.dtype for weight in model.parameters() if weight.requires_grad} == {torch.float32}
        assert {weight.dtype for weight in model.parameters() if not weight.requires_grad} == {torch.bfloat16}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("base_name", ["bert", "llama"])
def test_saved_weights_come_back_bit_for_bit(method, base_name, request, tmp_path):
    folder = request.getfixturevalue(base_name)
    _, model = adapt(folder, method)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.requires_grad:
                weight.normal_(std=0.3)
    find_method(method).save(model, tmp_path)
    for name, final_name in find_method(method).files.items():
        (tmp_path / name).rename(tmp_path / final_name)
    loaded = find_method(method).load(str(folder), TASK, tmp_path)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=base_name == "llama"):
        assert torch.equal(loaded.model.eval()(IDS).logits, model.eval()(IDS).logits)
    assert count_parameters(loaded.model, loaded.head) == count_parameters(model, loaded.head)


@pytest.mark.parametrize("method", ["tt-lora", "lora"])
def test_plain_peft_loads_what_was_saved(method, bert, tmp_path):
    _, model = adapt(bert, method)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.requires_grad:
                weight.normal_(std=0.3)
    find_method(method).save(model, tmp_path)
    plain = PeftModel.from_pretrained(AutoModelForSequenceClassification.from_pretrained(bert), tmp_path)
    with torch.no_grad():
        assert torch.equal(plain.eval()(IDS).logits, model.eval()(IDS).logits)


def test_full_is_a_plain_transformers_model(bert, tmp_path):
    _, model = adapt(bert, "full")
    find_method("full").save(model, tmp_path)
    plain = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    assert torch.equal(plain.eval()(IDS).logits, model.eval()(IDS).logits)


@pytest.mark.parametrize(
    ("method", "keys", "complaint"),
    [
        ("tt-lora", {"shape": "16,16,16"}, "has the product 4,096, but the 32 x 32 matrix has 1,024 entries"),
        (
            "tt-lora",
            {"targets": "q_proj"},
            "'q_proj' is no module of model .* linear modules are query, key, value, dense",
        ),
        ("lora", {"targets": "query,valu"}, "'valu' is no module"),
        ("lora", {"targets": "dropout"}, "method lora does not fit model"),
        ("lora", {"r": "4,4"}, r"--r is \[4, 4\]: method lora takes one rank"),
        ("lora", {"shape": "8,8"}, "--shape means nothing to method lora"),
        ("head", {"r": 3}, "--r means nothing to method head"),
        ("full", {"targets": "query"}, "--targets means nothing to method full"),
    ],
)
def test_recipe_that_does_not_fit_is_refused(method, keys, complaint, bert):
    with pytest.raises(UserError, match=complaint):
        adapt(bert, method, **keys)


def test_unknown_method_is_refused_with_a_suggestion():
    with pytest.raises(UserError, match="no method is called 'ttlora': did you mean tt-lora"):
        find_method("ttlora")
