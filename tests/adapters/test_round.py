"""Rounding keeps what the smaller ranks can hold, and tells the error of the rest."""

import json
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoModelForSequenceClassification

from tests.adapters.answers import of_bert
from ttlora import TTLoraConfig
from ttlora.adapters.read import Adapter, read_adapter
from ttlora.adapters.round import TrainAdapter, ranks_within, round_adapter
from ttlora.adapters.write import write_adapter
from ttlora.errors import UserError
from ttlora.tuners.tt_lora import TTLoraLayer, saved_update


def save(bert: Path, folder: Path, **options: Any) -> Adapter:
    torch.manual_seed(0)
    config = of_bert(init_weights=False, **options)
    get_peft_model(AutoModel.from_pretrained(bert), config).save_pretrained(folder)
    return read_adapter(folder)


def updates(bert: Path, folder: Path) -> dict[str, torch.Tensor]:
    model = PeftModel.from_pretrained(AutoModel.from_pretrained(bert), folder)
    layers = {name: layer for name, layer in model.named_modules() if isinstance(layer, TTLoraLayer)}
    return {
        name.removeprefix("base_model.model."): layer.get_delta_weight("default").double()
        for name, layer in layers.items()
    }


def assert_errors_told(bert: Path, before: Path, result: TrainAdapter, after: Path) -> None:
    write_adapter(after, result.config, result.tensors)
    wanted, found = updates(bert, before), updates(bert, after)
    assert wanted.keys() == found.keys() == {module.name for module in result.modules}
    squares = [0.0, 0.0]
    for module in result.modules:
        error = (wanted[module.name] - found[module.name]).norm().item()
        assert module.error == pytest.approx(error, rel=1e-3, abs=1e-6 * module.norm)
        assert module.norm == pytest.approx(wanted[module.name].norm().item(), rel=1e-5)
        squares = [squares[0] + module.error**2, squares[1] + module.norm**2]
    assert result.relative_error == pytest.approx((squares[0] / squares[1]) ** 0.5)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"shape": [8, 16, 2, 4], "scaling": "alpha/r"},
        {"shape_pattern": {"query": [2] * 10}, "rank_pattern": {"value": 2}},
        {"core_size": None},
        {"target_modules": ["query", "dense"], "r": 8},
    ],
)
def test_to_a_rank(bert: Path, tmp_path: Path, options: dict[str, Any]) -> None:
    adapter = save(bert, tmp_path / "before", **options)
    result = round_adapter(adapter, r=3)
    assert_errors_told(bert, tmp_path / "before", result, tmp_path / "after")
    for module in result.modules:
        before = saved_update(adapter.config, module.name).shape
        assert max(module.shape.ranks) <= 3
        assert all(new <= old for new, old in zip(module.shape.ranks, before.ranks, strict=True))
        assert module.parameters_before == before.parameters
        assert 0 < module.relative_error < 1 or max(before.ranks) <= 3
    assert 0 < result.relative_error < 1


def test_to_a_tolerance(bert: Path, tmp_path: Path) -> None:
    adapter = save(bert, tmp_path / "before", r=8)
    result = round_adapter(adapter, tolerance=0.5)
    assert_errors_told(bert, tmp_path / "before", result, tmp_path / "after")
    assert all(0.01 < module.relative_error <= 0.5 for module in result.modules)
    assert all(module.shape.parameters < module.parameters_before for module in result.modules)


def test_ranks_that_the_update_does_not_use_cost_nothing(bert: Path, tmp_path: Path) -> None:
    save(bert, tmp_path / "small", r=2)
    small = round_adapter(read_adapter(tmp_path / "small"), tolerance=1e-6)
    adapter = save(bert, tmp_path / "before", r=5)
    update = saved_update(adapter.config, small.modules[0].name)
    tensors = {}
    for module in small.modules:
        train = saved_update(small.config, module.name)
        held = train.acting_train(small.tensors[f"base_model.model.{module.name}.ttlora_cores"].double())
        tensors[f"base_model.model.{module.name}.ttlora_cores"] = update.entries_of(grown(held, update.shape)).float()
    write_adapter(tmp_path / "grown", adapter.config, tensors)
    result = round_adapter(read_adapter(tmp_path / "grown"), tolerance=1e-5)
    assert result.config.r == 2
    assert not result.config.rank_pattern
    assert result.relative_error < 1e-5


def grown(train: Any, shape: Any) -> Any:
    cores = [torch.zeros(sizes, dtype=torch.float64) for sizes in shape.core_shapes]
    for core, filled in zip(train.cores, cores, strict=True):
        filled[: core.shape[0], :, : core.shape[2]] = core
    return type(train).from_cores(shape.out_features, shape.in_features, cores)


def test_a_stack_of_experts(tmp_path: Path) -> None:
    config = TTLoraConfig(target_modules=["experts"], weight_sizes={"experts": [4, 8, 12]}, shape=[2, 4, 4, 3], r=6)
    shape = saved_update(config, "experts").shape
    assert shape.dims == (2, 4, 4, 4, 3)
    key = "base_model.model.mlp.experts.ttlora_cores"
    write_adapter(tmp_path / "before", config, {key: torch.randn(shape.parameters)})
    adapter = read_adapter(tmp_path / "before")
    for result in (round_adapter(adapter, r=2), round_adapter(adapter, tolerance=0.6)):
        (module,) = result.modules
        assert module.shape.parameters < shape.parameters
        assert 0 < module.relative_error < 1
        assert saved_update(result.config, "mlp.experts").shape == module.shape
        wanted = saved_update(config, "mlp.experts").acting_train(adapter.load(key).double()).to_matrix()
        found = saved_update(result.config, "mlp.experts").acting_train(result.tensors[key].double()).to_matrix()
        assert (wanted - found).norm().item() == pytest.approx(module.error, rel=1e-6)


def test_head_and_number_format_stay(bert: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_pretrained(bert)
    config = TTLoraConfig(task_type="SEQ_CLS", init_weights=False)
    get_peft_model(model, config).bfloat16().save_pretrained(tmp_path / "before")
    result = round_adapter(read_adapter(tmp_path / "before"), r=1)
    write_adapter(tmp_path / "after", result.config, result.tensors)
    before, after = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("before", "after"))
    assert before.keys() == after.keys()
    assert {tensor.dtype for tensor in after.values()} == {torch.bfloat16}
    for key in before:
        assert torch.equal(before[key], after[key]) == ("ttlora" not in key)
    values = json.loads((tmp_path / "after" / "adapter_config.json").read_text())
    assert (values["r"], values["task_type"]) == (1, "SEQ_CLS")


def test_an_update_that_is_zero(bert: Path, tmp_path: Path) -> None:
    get_peft_model(AutoModel.from_pretrained(bert), of_bert()).save_pretrained(tmp_path)
    result = round_adapter(read_adapter(tmp_path), r=2)
    assert result.relative_error == 0
    assert all(torch.isfinite(tensor).all() for tensor in result.tensors.values())


def test_refusals(bert: Path, tmp_path: Path) -> None:
    adapter = save(bert, tmp_path / "tt")
    with pytest.raises(UserError, match="`r` is 5, and the adapter's largest TT-rank is 5: there is nothing to round"):
        round_adapter(adapter, r=5)
    get_peft_model(AutoModel.from_pretrained(bert), LoraConfig()).save_pretrained(tmp_path / "lora")
    with pytest.raises(UserError, match="is an adapter of LORA, and ttlora round takes those of TT-LoRA"):
        round_adapter(read_adapter(tmp_path / "lora"), r=2)


@pytest.mark.parametrize("options", [{"alpha": 0.0}, {"alpha_pattern": {"query": 0.0}}])
def test_a_scale_of_zero(options: dict[str, Any], bert: Path, tmp_path: Path) -> None:
    get_peft_model(AutoModel.from_pretrained(bert), of_bert(**options)).save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"has the scale 0 \(alpha\): it is zero, and there is nothing to round"):
        round_adapter(read_adapter(tmp_path), r=2)


@pytest.mark.parametrize("entry", [float("nan"), float("inf"), 1e300])
def test_updates_without_a_norm(entry: float, bert: Path, tmp_path: Path) -> None:
    get_peft_model(AutoModel.from_pretrained(bert), of_bert()).save_pretrained(tmp_path)
    file = tmp_path / "adapter_model.safetensors"
    save_file({key: tensor.double().fill_(entry) for key, tensor in load_file(file).items()}, file)
    with pytest.raises(UserError, match="query' is not finite: the training diverged, or the file is damaged"):
        round_adapter(read_adapter(tmp_path), r=2)


class TestToANumberOfParameters:
    """One threshold over all modules and bonds."""

    # of one module the update is a hundred times as large, and what a rank of it holds, too
    OPTIONS: ClassVar[dict[str, Any]] = {
        "target_modules": ["query", "dense"],
        "r": 6,
        "alpha_pattern": {"query": 400.0},
    }

    def test_is_kept_and_the_error_told(self, bert: Path, tmp_path: Path) -> None:
        adapter = save(bert, tmp_path / "before", **self.OPTIONS)
        before = sum(saved_update(adapter.config, name).parameters for name in adapter.modules)
        result = round_adapter(adapter, parameters=before // 3)
        assert_errors_told(bert, tmp_path / "before", result, tmp_path / "after")
        after = sum(module.shape.parameters for module in result.modules)
        assert 0.8 * (before // 3) < after <= before // 3

    def test_what_counts_least_goes_first(self, bert: Path, tmp_path: Path) -> None:
        adapter = save(bert, tmp_path / "before", **self.OPTIONS)
        trains = {
            name: saved_update(adapter.config, name).acting_train(adapter.load(key).double())
            for name, (key,) in adapter.modules.items()
        }
        budget = sum(train.shape.parameters for train in trains.values()) // 2
        ranks = ranks_within(budget, trains)
        assert all(max(ranks[name]) == 6 for name in ranks if "query" in name)
        assert all(min(ranks[name]) < 6 for name in ranks if "query" not in name)
        result = round_adapter(adapter, parameters=budget)
        alike = next(
            rounded
            for rounded in (round_adapter(adapter, r=r) for r in (5, 4, 3, 2, 1))
            if sum(module.shape.parameters for module in rounded.modules) <= budget
        )
        assert result.relative_error < alike.relative_error / 10

    def test_singular_values_are_those_of_the_unfoldings(self, bert: Path, tmp_path: Path) -> None:
        adapter = save(bert, tmp_path / "before", shape_pattern={"query": [4, 2, 4, 4, 8]})
        name = next(name for name in adapter.modules if "query" in name)
        (key,) = adapter.modules[name]
        train = saved_update(adapter.config, name).acting_train(adapter.load(key).double())
        rows = 1
        for k, r, values in zip(train.shape.dims, train.shape.ranks[1:], train.singular_values(), strict=False):
            rows *= k
            unfolding = train.to_matrix().reshape(rows, -1)
            torch.testing.assert_close(values, torch.linalg.svdvals(unfolding)[:r])

    def test_refusals(self, bert: Path, tmp_path: Path) -> None:
        adapter = save(bert, tmp_path / "before")
        with pytest.raises(UserError, match=r"`parameters` is 10,000, and the adapter has .*: there is nothing to"):
            round_adapter(adapter, parameters=10_000)
        with pytest.raises(UserError, match="`parameters` is 3, and at rank 1 the adapter would still have"):
            round_adapter(adapter, parameters=3)
