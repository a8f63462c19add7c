"""The totals of the paper's adapters, and what is refused."""

from pathlib import Path

import pytest
import torch
from peft import get_peft_model
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    MixtralConfig,
    MixtralForCausalLM,
    ResNetConfig,
)

from ttlora import TTLoraConfig
from ttlora.errors import UserError
from ttlora.planner.plan import plan as make_plan
from ttlora.tuners.tt_lora import DEFAULT_TARGET_MODULES

LLAMA3_Q = [16, 4, 4, 4, 2, 2, 2, 2, 4, 4, 4, 16]
LLAMA3_V = [16, 4, 4, 2, 2, 2, 2, 4, 4, 4, 16]


@pytest.mark.parametrize(
    ("model", "names", "adapter", "lora"),
    [
        ("deberta-base", ["in_proj"], 22_080, 294_912),
        ("roberta-base", ["query", "value"], 21_888, 294_912),
        ("llama2-7b", ["q_proj", "v_proj"], 112_640, 4_194_304),
        ("llama3-8b", ["q_proj", "v_proj"], 212_480, 3_407_872),
    ],
)
def test_the_paper_adapters(model: str, names: list[str], adapter: int, lora: int) -> None:
    plan = make_plan(model)
    assert [matrix.name for matrix in plan.matrices] == names
    assert plan.adapter_parameters == adapter
    assert plan.bytes_16bit == 2 * adapter
    assert plan.lora_r8_parameters == lora
    assert len(plan.notes) == 2
    assert all("the paper's" in note for note in plan.notes)


def test_llama3_by_pattern() -> None:
    plan = make_plan("llama3-8b", shape={"q_proj": LLAMA3_Q, "v_proj": LLAMA3_V}, r=10, targets=["q_proj", "v_proj"])
    assert plan.adapter_parameters == 212_480
    assert [matrix.shape.parameters for matrix in plan.matrices] == [3_520, 3_120]
    assert plan.notes == ()


@pytest.mark.parametrize("shape", ["auto", {"v_proj": LLAMA3_V}])
def test_nothing_of_the_papers_with_another_shape(shape: str | dict[str, list[int]]) -> None:
    plan = make_plan("llama3-8b", shape=shape)
    names = ["v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    assert [(matrix.name, matrix.count) for matrix in plan.matrices] == [(name, 32) for name in names]
    assert {max(matrix.shape.ranks) for matrix in plan.matrices} == {2}
    assert plan.notes == ()
    assert plan == make_plan("llama3-8b", shape=shape, r=TTLoraConfig.r)


def test_the_papers_shape_for_other_targets() -> None:
    plan = make_plan("llama2-7b", targets=["q_proj", "o_proj"])
    assert [(matrix.name, matrix.shape.dims) for matrix in plan.matrices] == [
        ("q_proj", (16,) * 6),
        ("o_proj", (16,) * 6),
    ]
    assert {max(matrix.shape.ranks) for matrix in plan.matrices} == {5}


def test_the_papers_shape_with_another_rank() -> None:
    plan = make_plan("llama2-7b", r=8)
    assert [matrix.shape.dims for matrix in plan.matrices] == [(16,) * 6] * 2
    assert [matrix.shape.ranks for matrix in plan.matrices] == [(1, 8, 8, 8, 8, 8, 1)] * 2
    assert plan.notes == ("shape of q_proj, v_proj: the paper's for llama2-7b (Table IV)",)


def test_the_example_of_995_parameters() -> None:
    (matrix,) = make_plan("deberta-base", shape=[12, 8, 8, 3, 8, 8, 12], r=5, targets=["in_proj"]).matrices
    assert (matrix.shape.parameters, matrix.count, matrix.shape.boundary) == (995, 12, 4)


def test_without_a_paper_it_is_auto_and_rank_2() -> None:
    plan = make_plan("mixtral-8x7b")
    # its experts are stacked in parameters
    assert [(matrix.name, matrix.count) for matrix in plan.matrices] == [("v_proj", 32), ("o_proj", 32)]
    assert {max(matrix.shape.ranks) for matrix in plan.matrices} == {2}
    assert plan.lora_r8_parameters == 3_407_872
    assert plan.notes == ()


def test_shapes_by_name_leave_the_others_to_auto() -> None:
    q, v = make_plan("llama2-7b", shape={"q_proj": [64] * 4}, r=3, targets=["q_proj", "v_proj"]).matrices
    assert q.shape.dims == (64,) * 4
    assert v.shape.dims == (16,) * 6


def save_bert(folder: Path) -> BertForSequenceClassification:
    config = BertConfig(
        hidden_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=48,
        vocab_size=30,
        architectures=["BertForSequenceClassification"],
    )
    config.save_pretrained(folder)
    return BertForSequenceClassification(config)


@pytest.mark.parametrize("targets", [None, ["query"], ["attention.output.dense", "value"], ["all-linear"]])
def test_it_is_what_the_tuner_makes(tmp_path: Path, targets: list[str] | None) -> None:
    model = save_bert(tmp_path)
    plan = make_plan(str(tmp_path), targets=targets, r=3)
    modules = "all-linear" if targets == ["all-linear"] else targets
    # as `ttlora train` does, where the pooler is part of the head
    config = TTLoraConfig(r=3, task_type="SEQ_CLS", target_modules=modules, modules_to_save=["bert.pooler"])
    adapted = get_peft_model(model, config)
    cores = {name: p for name, p in adapted.named_parameters() if "ttlora_cores" in name}
    assert plan.adapter_parameters == sum(p.numel() for p in cores.values())
    assert sum(matrix.count for matrix in plan.matrices) == len(cores)
    assert plan.full_parameters == sum(p.numel() for p in save_bert(tmp_path).parameters())


def test_transposed_layers(tmp_path: Path) -> None:
    config = GPT2Config(
        n_embd=24, n_layer=2, n_head=2, vocab_size=30, n_positions=16, architectures=["GPT2LMHeadModel"]
    )
    config.save_pretrained(tmp_path)
    plan = make_plan(str(tmp_path))
    assert [(m.name, m.shape.out_features, m.shape.in_features, m.count) for m in plan.matrices] == [
        ("c_attn", 72, 24, 2),
        ("attn.c_proj", 24, 24, 2),
        ("c_fc", 96, 24, 2),
        ("mlp.c_proj", 24, 96, 2),
    ]
    adapted = get_peft_model(GPT2LMHeadModel(config), TTLoraConfig())
    assert adapted.get_nb_trainable_parameters()[0] == plan.adapter_parameters


def test_kinds_that_share_a_name_are_told_apart(tmp_path: Path) -> None:
    save_bert(tmp_path)
    plan = make_plan(str(tmp_path), targets=["all-linear"])
    assert [(matrix.name, matrix.count) for matrix in plan.matrices] == [
        ("query", 2),
        ("key", 2),
        ("value", 2),
        ("attention.output.dense", 2),
        ("intermediate.dense", 2),
        ("output.dense", 2),
    ]


def test_the_default_asks_for_no_known_type(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_bert(tmp_path)
    expected = make_plan(str(tmp_path))
    monkeypatch.delitem(DEFAULT_TARGET_MODULES, "bert")
    assert make_plan(str(tmp_path)) == expected


def test_a_model_without_linear_layers_asks_for_targets(tmp_path: Path) -> None:
    config = ResNetConfig(embedding_size=8, hidden_sizes=[8], depths=[1], layer_type="basic")
    config.architectures = ["ResNetModel"]
    config.save_pretrained(tmp_path)
    with pytest.raises(UserError, match="a ResNetModel has no linear layers that are adapted by default: name the"):
        make_plan(str(tmp_path))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"shape": [16, 16]}, r"product 256, but the 4096 x 4096 matrix has 16,777,216"),
        ({"shape": [16, 0]}, r"shape=\[16, 0\] is neither"),
        ({"shape": {"x_proj": [64] * 4}}, "'x_proj' belongs to no adapted module; adapted are v_proj, o_proj"),
        ({"shape": {"k_proj": [64] * 4}}, "'k_proj' belongs to no adapted module"),
        ({"shape": {"q(": [64] * 4}}, r"'q\(', which is no name and no regular expression"),
        ({"r": 0}, "`r` is 0, and has to be at least 1"),
        ({"targets": ["qkv"]}, "'qkv' is no module of the model; its linear modules are q_proj, k_proj"),
        ({"targets": ["q_proj", "qkv"]}, "'qkv' is no module of the model"),
        ({"targets": ["self_attn"]}, "'model.layers.0.self_attn' is a LlamaAttention, which no adapter fits"),
    ],
)
def test_wrong_use(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        make_plan("llama2-7b", **arguments)
    assert "\n" not in str(error.value)


def test_experts_held_as_one_tensor_are_no_linear_modules() -> None:
    with pytest.raises(UserError, match=r"'model\.layers\.0\.mlp.experts' is a MixtralExperts"):
        make_plan("mixtral-8x7b", targets=["experts"])


def test_the_callers_random_state_stays() -> None:
    before = torch.get_rng_state()
    make_plan("roberta-base")
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("targets", [["q_proj", "w1", "w2", "w3"], ["all-linear"], ["w1", "w3"]])
@pytest.mark.parametrize("budget", [None, 40_000])
def test_stacked_experts_are_planned_as_they_are_adapted(
    targets: list[str], budget: int | None, tmp_path: Path
) -> None:
    config = MixtralConfig(
        vocab_size=64, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, num_local_experts=4,
    )  # fmt: skip
    config.architectures = ["MixtralForCausalLM"]
    config.save_pretrained(tmp_path)
    plan = make_plan(str(tmp_path), targets=targets, budget=budget)
    patterns = {matrix.name.split(".")[-1]: matrix for matrix in plan.matrices}
    model = get_peft_model(
        MixtralForCausalLM(config),
        TTLoraConfig(
            target_modules=targets if targets != ["all-linear"] else "all-linear",
            shape_pattern={} if targets == ["all-linear"] else {n: list(m.dims) for n, m in patterns.items()},
            r=max(max(matrix.shape.ranks) for matrix in plan.matrices),
        ),
    )
    trained = sum(weight.numel() for weight in model.parameters() if weight.requires_grad)
    if targets != ["all-linear"] or budget is None:
        assert plan.adapter_parameters == trained
    if budget is not None:
        assert plan.bytes_16bit <= budget
    stacks = [matrix for matrix in plan.matrices if matrix.experts == 4]
    assert all(matrix.shape.out_features % 4 == 0 for matrix in stacks)
    assert len(stacks) == (1 if "w2" not in targets and targets != ["all-linear"] else 2)


def test_a_part_of_a_stack_is_refused() -> None:
    with pytest.raises(UserError, match="target_modules has w1 and not w3"):
        make_plan("mixtral-8x7b", targets=["w1"])
