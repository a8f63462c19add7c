import json
from dataclasses import asdict, fields, replace

import pytest

from ttlora.record import Record

RECORD = Record(
    method="tt-lora",
    model="bert",
    task="glue/mrpc",
    seed=3,
    adapter_parameters=9360,
    head_parameters=770,
    trainable_parameters=10130,
    adapter_bytes=22084,
    metrics={"f1": 0.87, "accuracy": 1},
    primary_metric="f1",
    validation_loss=0.4,
    best_epoch=2,
    epochs=3,
    train_seconds=12.5,
    seconds_per_step=0.1,
    peak_memory_bytes=10**9,
    recipe={"model": "bert", "shape": [8, 8], "text": "é"},
    versions={"python": "3.11"},
)


def test_keys_are_those_that_reports_rely_on():
    keys = "schema method model task seed adapter_parameters head_parameters trainable_parameters adapter_bytes"
    keys += " metrics primary_metric validation_loss best_epoch epochs train_seconds seconds_per_step peak_memory_bytes"
    keys += " recipe versions"
    assert [field.name for field in fields(Record)] == keys.split()


def test_write_and_read_give_the_same_record(tmp_path):
    RECORD.write(tmp_path / "result.json")
    assert Record.read(tmp_path / "result.json") == RECORD
    assert [path.name for path in tmp_path.iterdir()] == ["result.json"]


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("seed", "3"),
        ("seed", True),
        ("epochs", 3.0),
        ("validation_loss", float("nan")),
        ("metrics", {"f1": float("inf")}),
        ("metrics", {"f1": "high"}),
        ("primary_metric", "accuracy at k"),
        ("recipe", []),
    ],
)
def test_wrong_value_is_refused_by_name(key, value):
    with pytest.raises(ValueError, match=key):
        replace(RECORD, **{key: value})


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda content: content.pop("seed"), "it has no seed"),
        (lambda content: content.update(colour="red"), "unknown key colour"),
        (lambda content: content.update(schema=2), "its schema is 2, not 1"),
        (lambda content: content.update(method=None), "method has no value"),
    ],
)
def test_damaged_file_is_refused_with_its_name(change, complaint, tmp_path):
    content = asdict(RECORD)
    change(content)
    (tmp_path / "result.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=rf"result\.json.*{complaint}"):
        Record.read(tmp_path / "result.json")


@pytest.mark.parametrize("text", ["", "[]", '{"schema": 1'])
def test_file_that_is_no_record_is_refused(text, tmp_path):
    (tmp_path / "result.json").write_text(text)
    with pytest.raises(ValueError, match="is no result record"):
        Record.read(tmp_path / "result.json")
