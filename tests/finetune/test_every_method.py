"""Every method through a whole run: what is saved gives the metric again."""

import json
import subprocess
import sys

import pytest

from tests.finetune.test_methods import OTHERS, SMALL
from tests.finetune.test_resume import killed, outcome
from ttlora.finetune.finished import FinishedRun
from ttlora.finetune.methods import METHODS
from ttlora.finetune.recipe import Recipe
from ttlora.finetune.run import train
from ttlora.finetune.trainer import TaskTrainer


def finish(method, model, data, output, **keys):
    keys = {"task": "glue/sst2", "epochs": 1, "batch_size": 24, "threads": 1, **SMALL.get(method, {}), **keys}
    return train(
        Recipe(model=str(model), data=str(data), output=str(output), method=method, **keys),
        quiet=True,
    )


def check(record, output):
    again = FinishedRun.load(str(output))
    evaluation = again.evaluate()
    assert (evaluation.metrics, evaluation.validation_loss) == (record.metrics, record.validation_loss)
    assert record.trainable_parameters == record.adapter_parameters + record.head_parameters


@pytest.mark.parametrize("method", [*METHODS, *OTHERS])
def test_the_same_metric_from_what_was_saved(method, bert, data, tmp_path):
    record = finish(method, bert, data, tmp_path / "out")
    assert record.head_parameters == (32 * 32 + 32) + (32 * 2 + 2)
    assert (record.adapter_parameters > 0) == (method != "head")
    check(record, tmp_path / "out")


@pytest.mark.parametrize("method", ["tt-lora", "loretta-rep", "prompt", "prefix", "p-tuning"])
def test_a_causal_model_that_answers_with_words(method, llama, data, tmp_path):
    record = finish(method, llama, data, tmp_path / "out", scoring="prompt")
    assert record.head_parameters == 0
    check(record, tmp_path / "out")


@pytest.mark.parametrize("method", ["loretta-rep", "meta-tt", "p-tuning", "bitfit", "vera"])
def test_a_killed_run_resumes_to_the_same_end(method, bert, data, tmp_path):
    keys = {"epochs": 2, "learning_rate": 1e-2}
    finish(method, bert, data, tmp_path / "whole", **keys)
    with killed(TaskTrainer, "training_step", 4):
        finish(method, bert, data, tmp_path / "parts", **keys)
    finish(method, bert, data, tmp_path / "parts", resume=True, **keys)
    assert outcome(tmp_path / "parts") == outcome(tmp_path / "whole")


@pytest.mark.slow
def test_the_same_metric_in_a_fresh_process(bert, llama, data, tmp_path):
    records = {method: finish(method, bert, data, tmp_path / method) for method in [*METHODS, *OTHERS]}
    for method in ("tt-lora", "loretta-rep", "loretta-adp", "lora", "prompt", "prefix", "p-tuning"):
        records[f"causal {method}"] = finish(method, llama, data, tmp_path / f"causal {method}", scoring="prompt")
    script = """
import json, sys
from ttlora.finetune import training
from ttlora.finetune.finished import FinishedRun
from ttlora.finetune.trainer import TaskTrainer
runs = {name: FinishedRun.load(f"{sys.argv[1]}/{name}").evaluate() for name in sys.argv[2:]}
print(json.dumps({name: [run.metrics, run.validation_loss] for name, run in runs.items()}))
"""
    process = subprocess.run([sys.executable, "-c", script, tmp_path, *records], capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    found = json.loads(process.stdout)
    assert found == {name: [record.metrics, record.validation_loss] for name, record in records.items()}
