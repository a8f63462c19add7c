"""`ttlora train` on the GPU."""

import json

import pytest
import torch

from tests.conftest import GOOD, write_jsonl
from tests.cuda.devices import NEEDS_GPU, NEEDS_GPUS
from ttlora.cli.main import main
from ttlora.errors import out_of_memory
from ttlora.finetune.trainer import TaskTrainer

# Trainer takes the GPU where there is one
pytestmark = NEEDS_GPU


@pytest.fixture
def flags(bert, data, tmp_path):
    files = ["--model", str(bert), "--data", str(data), "--output", str(tmp_path / "out")]
    keys = ["--method", "tt-lora", "--task", "glue/sst2", "--epochs", "2", "--batch-size", "8"]
    return ["train", *files, *keys, "--rows-at-once", "auto"]


def record_of(tmp_path):
    return json.loads((tmp_path / "out" / "result.json").read_text())


@pytest.fixture
def devices(monkeypatch):
    """The kind of device of each batch's model, and how many rows the batch has."""
    seen = []
    original = TaskTrainer.training_step

    def step(self, model, inputs, *options):
        seen.append((next(model.parameters()).device.type, len(inputs.get("labels", inputs["input_ids"]))))
        return original(self, model, inputs, *options)

    monkeypatch.setattr(TaskTrainer, "training_step", step)
    return seen


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_it_trains(flags, tmp_path, devices, dtype):
    assert main([*flags, "--dtype", dtype]) == 0
    expected = "cuda" if torch.cuda.is_available() else "cpu"
    assert set(devices) == {(expected, 8)}
    record = record_of(tmp_path)
    assert main(["evaluate", str(tmp_path / "out")]) == 0
    assert 0 < record["validation_loss"] < 2


def test_rows_are_halved_when_the_gpus_memory_runs_out(flags, tmp_path, devices, monkeypatch, capsys):
    counted = TaskTrainer.training_step

    def step(self, model, inputs, *options):
        if len(inputs["labels"]) > 2:
            torch.empty(2**50, dtype=torch.uint8, device=next(model.parameters()).device)
        return counted(self, model, inputs, *options)

    monkeypatch.setattr(TaskTrainer, "training_step", step)
    assert main(flags) == 0
    told = capsys.readouterr().err
    assert "memory ran out: going on with 4 rows at once\n" in told
    assert "memory ran out: going on with 2 rows at once\n" in told
    assert {rows for _, rows in devices} == {2}


def test_the_error_of_the_gpu_is_known():
    device = "cuda" if torch.cuda.is_available() else "cpu"
    with pytest.raises(RuntimeError) as raised:
        torch.empty(2**50, dtype=torch.uint8, device=device)
    assert out_of_memory(raised.value)


@pytest.mark.parametrize("bits", ["4bit", "8bit"])
def test_quantised_bases(flags, tmp_path, devices, bits):
    pytest.importorskip("bitsandbytes")
    assert main([*flags, "--quantize", bits, "--gradient-checkpointing"]) == 0
    assert record_of(tmp_path)["validation_loss"] > 0


class TestSeveralGPUs:
    pytestmark = NEEDS_GPUS

    def test_one_process_takes_one_and_says_so(self, flags, devices, capsys):
        """And no `nn.DataParallel`, whose replicas would get rows that belong together."""
        assert main(flags) == 0
        assert f"1 of {torch.cuda.device_count()} GPUs is used; torchrun" in capsys.readouterr().err
        assert {rows for _, rows in devices} == {8}


@pytest.mark.parametrize("keys", [["--packing"], ["--quantize", "8bit"], []])
@pytest.mark.parametrize("kind", ["text", "preference"])
def test_language_models(kind, keys, llama, tmp_path, devices):
    if "--quantize" in keys:
        pytest.importorskip("bitsandbytes")
    if kind == "preference" and "--packing" in keys:
        keys = ["--gradient-checkpointing"]
    rows = [{"prompt": "the film was", "chosen": word, "rejected": "dull", "text": f"a {word} film"} for word in GOOD]
    file = str(write_jsonl(tmp_path / "rows.jsonl", rows))
    files = ["--task", "file", "--train", file, "--validation", file, "--output", str(tmp_path / "out")]
    flags = ["--model", str(llama), "--label-kind", kind, "--epochs", "2", "--batch-size", "2", "--max-length", "16"]
    assert main(["train", *files, *flags, *keys]) == 0
    assert {device for device, _ in devices} == {"cuda" if torch.cuda.is_available() else "cpu"}
    assert main(["evaluate", str(tmp_path / "out")]) == 0
    assert record_of(tmp_path)["validation_loss"] > 0
