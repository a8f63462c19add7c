"""Norms from the cores are those of the dense updates."""

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModel, AutoModelForSequenceClassification

from tests.adapters.answers import of_bert
from ttlora import TTLoraConfig
from ttlora.adapters.inspect import inspect
from ttlora.tuners.tt_lora import TTLoraLayer


def save(bert: Path, folder: Path, config: Any) -> PeftModel:
    torch.manual_seed(0)
    model = get_peft_model(AutoModelForSequenceClassification.from_pretrained(bert), config)
    model.save_pretrained(folder)
    return model


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"shape": [8, 16, 2, 4], "alpha": -3.0},  # not aligned
        {"shape": [32, 32], "r": 40, "alpha": 3.0, "scaling": "alpha/r"},
        {"shape_pattern": {"query": [2] * 10}, "alpha_pattern": {"value": 0.5}, "rank_pattern": {"value": 2}},
        {"core_size": None},
    ],
)
def test_norms(bert: Path, tmp_path: Path, options: dict[str, Any]) -> None:
    model = save(bert, tmp_path, of_bert(task_type="SEQ_CLS", init_weights=False, **options))
    reports = {report.name: report for report in inspect(tmp_path).modules}
    layers = {name: layer for name, layer in model.base_model.model.named_modules() if isinstance(layer, TTLoraLayer)}
    assert reports.keys() == layers.keys()
    for name, layer in layers.items():
        norm = torch.linalg.matrix_norm(layer.get_delta_weight("default")).item()
        assert norm > 0
        assert reports[name].norm == pytest.approx(norm, rel=1e-4)
        assert reports[name].shape == layer.ttlora_update["default"].shape
        assert reports[name].parameters == layer.ttlora_cores["default"].numel()


def test_a_fresh_adapter_has_moved_nothing(bert: Path, tmp_path: Path) -> None:
    save(bert, tmp_path, TTLoraConfig(task_type="SEQ_CLS"))
    assert {report.norm for report in inspect(tmp_path).modules} == {0.0}


def test_cores_that_are_not_finite(bert: Path, tmp_path: Path) -> None:
    model = save(bert, tmp_path, of_bert(task_type="SEQ_CLS", init_weights=False))
    query = model.get_submodule("base_model.model.bert.encoder.layer.0.attention.self.query")
    query.ttlora_cores["default"].data[3] = torch.nan
    model.save_pretrained(tmp_path)
    norms = [report.norm for report in inspect(tmp_path).modules]
    assert norms[0] is not None
    assert norms[0] != norms[0]
    assert all(norm is not None and norm > 0 for norm in norms[1:])


def test_the_folder_alone_says_what_the_cores_mean(bert: Path, tmp_path: Path) -> None:
    model = get_peft_model(AutoModel.from_pretrained(bert), TTLoraConfig(init_weights=False, target_modules=["dense"]))
    model.base_model.model.config._name_or_path = "some-one/model-that-is-gone"
    model.save_pretrained(tmp_path)
    shapes = {report.name: report.shape for report in inspect(tmp_path).modules}
    sizes = {name: (shape.out_features, shape.in_features) for name, shape in shapes.items() if shape}
    assert sizes["encoder.layer.0.attention.output.dense"] == (32, 32)
    assert sizes["encoder.layer.1.intermediate.dense"] == (48, 32)
    assert sizes["encoder.layer.1.output.dense"] == (32, 48)


def test_other_methods_report_tensors(bert: Path, tmp_path: Path) -> None:
    save(bert, tmp_path, LoraConfig(task_type="SEQ_CLS", r=3))
    reports = inspect(tmp_path).modules
    assert [report.parameters for report in reports] == [3 * 64] * 4
    assert all(report.shape is None and report.norm is None for report in reports)
