"""A run that goes on epoch by epoch, on a base model that serves many runs."""

import pytest
import torch
from safetensors.torch import load_file

from ttlora.finetune.data import load_data
from ttlora.finetune.methods import find_method
from ttlora.finetune.prepared import Prepared
from ttlora.finetune.recipe import Recipe
from ttlora.finetune.run import train, train_epoch
from ttlora.record import Record

SPEED = {"train_seconds", "seconds_per_step", "peak_memory_bytes", "recipe"}


def make_recipe(model, data, output, **keys) -> Recipe:
    keys = {"task": "glue/sst2", "epochs": 3, "batch_size": 8, "threads": 1, "learning_rate": 1e-2, **keys}
    recipe = Recipe(model=str(model), output=str(output), data=str(data), **keys)
    return find_method(recipe.method).complete(recipe)


def prepare(recipe) -> Prepared:
    return Prepared.load(recipe, find_method(recipe.method), load_data(recipe))


def measured(record: Record) -> dict:
    return {key: value for key, value in vars(record).items() if key not in SPEED}


@pytest.mark.parametrize(
    ("method", "keys"),
    [
        ("tt-lora", {}),
        ("lora", {"settings": {"bias": "all"}}),
        ("loretta-rep", {}),
        ("bitfit", {}),
        ("prompt", {}),
        ("full", {"learning_rate": 1e-3}),
    ],
)
def test_epochs_come_to_what_a_run_comes_to_and_leave_the_base_as_it_was(method, keys, bert, data, tmp_path):
    recipe = make_recipe(bert, data, tmp_path / "epochs", method=method, **keys)
    prepared = prepare(recipe)
    before = {name: weight.clone() for name, weight in prepared.base.model.state_dict().items()}
    records = [train_epoch(recipe, prepared) for _ in range(3)]
    assert [record.epochs for record in records] == [1, 2, 3]
    whole = train(make_recipe(bert, data, tmp_path / "whole", method=method, **keys), quiet=True)
    assert measured(records[-1]) == measured(whole)
    weights, expected = (
        load_file(next((tmp_path / name / "adapter").glob("*.safetensors"))) for name in ("epochs", "whole")
    )
    assert all(torch.equal(weights[name], weight) for name, weight in expected.items())
    for name, weight in prepared.base.model.state_dict().items():
        assert torch.equal(weight, before[name]), name
    again = train_epoch(make_recipe(bert, data, tmp_path / "again", method=method, **keys), prepared)
    assert measured(again) == measured(records[0])


def test_record_so_far(bert, data, tmp_path):
    recipe = make_recipe(bert, data, tmp_path / "out")
    record = train_epoch(recipe, prepare(recipe))
    folder = tmp_path / "out"
    assert Record.read(folder / "so_far.json") == record
    assert not (folder / "result.json").exists()
    assert (record.epochs, record.best_epoch, record.primary_metric) == (1, 1, "accuracy")
    assert record.adapter_bytes == (folder / "adapter" / "adapter_model.safetensors").stat().st_size
    train(make_recipe(bert, data, folder, resume=True), quiet=True)
    assert not (folder / "so_far.json").exists()
    assert Record.read(folder / "result.json").epochs == 3


def test_weights_are_shared_but_for_the_head(bert, data, tmp_path):
    recipe = make_recipe(bert, data, tmp_path / "out")
    prepared = prepare(recipe)
    copied = dict(prepared.copy_base(whole=False).model.named_parameters())
    own = {name for name, weight in prepared.base.model.named_parameters() if weight is not copied[name]}
    assert own
    assert all(name.startswith(prepared.base.head) for name in own)
