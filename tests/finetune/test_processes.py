"""One training by several processes: the same numbers, one record, and one line for what is wrong."""

import os
import signal
import socket
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.finetune.test_losses import recipe_for
from tests.finetune.test_resume import log
from ttlora.errors import UserError
from ttlora.finetune.recipe import Recipe
from ttlora.finetune.run import train
from ttlora.record import Record


def recipe_of(model: Path, folder: Path, kind: str, output: str, **keys: Any) -> Recipe:
    """21 rows in steps of 8: the last step of an epoch has five, which do not divide among two processes."""
    learns = {"learning_rate": 0.01, "epochs": 3, "output": str(folder / output)}
    return replace(recipe_for(model, folder, kind, 8), **{**learns, **keys})


def start(count: int, recipe: Recipe, command: tuple[str, ...] = ("-m", "ttlora")) -> list[subprocess.Popen[str]]:
    """The command in several processes, as torchrun starts them."""
    file = Path(f"{recipe.output}.yaml")
    recipe.write(file)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    told = {"WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    return [
        subprocess.Popen(
            [sys.executable, *command, "train", "--config", str(file)],
            env=os.environ | {name: str(of) for name, of in {**told, "RANK": rank, "LOCAL_RANK": rank}.items()},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(count)
    ]


def end(processes: list[subprocess.Popen[str]]) -> tuple[list[int], list[str], list[str]]:
    """Statuses, what was printed, and what was told, of each."""
    told = [process.communicate(timeout=180) for process in processes]
    # an assertion cuts long texts, and shows what was printed whole
    print(*(err for _, err in told), sep="\n")
    return [process.returncode for process in processes], [out for out, _ in told], [err for _, err in told]


def curve(recipe: Recipe) -> list[float]:
    lines = log(Path(recipe.output))
    return [line[name] for line in lines for name in ("loss", "validation_loss") if name in line]


@pytest.mark.parametrize(
    ("kind", "keys"),
    [
        pytest.param("text", {"rows_at_once": 4}, marks=pytest.mark.slow),
        pytest.param("classes", {}, marks=pytest.mark.slow),
        pytest.param("preference", {"rows_at_once": 4}, marks=pytest.mark.slow),
        pytest.param("text", {"shard": True}, marks=pytest.mark.slow),
        pytest.param("generation", {"shard": True, "gradient_checkpointing": True}, marks=pytest.mark.slow),
        pytest.param("preference", {"shard": True, "rows_at_once": 4}, marks=pytest.mark.slow),
        pytest.param("classes", {"shard": True}, marks=pytest.mark.slow),
        pytest.param("text", {"shard": True, "method": "prompt"}, marks=pytest.mark.slow),
        pytest.param("choices by a head", {}, marks=pytest.mark.slow),
        pytest.param("choices by a prompt", {"gradient_checkpointing": True}, marks=pytest.mark.slow),
    ],
)
def test_two_processes_learn_what_one_does(kind, keys, llama32, tmp_path):
    two, one = (recipe_of(llama32, tmp_path, kind, name, **keys) for name in ("two", "one"))
    statuses, printed, told = end(start(2, two))
    assert statuses == [0, 0], told
    assert "measured from the saved adapter" in printed[0]
    assert "epoch 3/3" in told[0]
    assert (printed[1], told[1].count("epoch")) == ("", 0)
    expected, found = train(one, quiet=True), Record.read(tmp_path / "two" / "result.json")
    assert curve(two) == pytest.approx(curve(one), rel=1e-4)
    assert found.validation_loss == pytest.approx(expected.validation_loss, rel=1e-4)
    files = ["adapter", "log.jsonl", "recipe.yaml", "result.json"]
    assert sorted(item.name for item in (tmp_path / "two").iterdir()) == files


@pytest.mark.slow
def test_killed_processes_go_on_as_one(llama32, tmp_path):
    # a rate at which roundings do not grow
    keys = {"epochs": 30, "patience": 30, "save_every": 1, "learning_rate": 0.001}
    killed, whole = (recipe_of(llama32, tmp_path, "text", name, **keys) for name in ("killed", "whole"))
    processes = start(2, killed)
    deadline = time.monotonic() + 120
    while not (tmp_path / "killed" / "checkpoints" / "progress.json").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    time.sleep(0.5)
    for process in processes:
        process.send_signal(signal.SIGKILL)
    end(processes)
    assert not (tmp_path / "killed" / "result.json").exists(), "the training was over before it was killed"
    train(replace(killed, resume=True), quiet=True)
    train(whole, quiet=True)
    assert curve(killed) == pytest.approx(curve(whole), rel=1e-4)


# a process that has no room for more than two rows at once, and that is not the first
TIGHT = """
import os, runpy
from ttlora.finetune.language_trainer import SupervisedTrainer

compute_loss = SupervisedTrainer.compute_loss

def in_little_memory(self, model, inputs, **keywords):
    if os.environ["RANK"] == "1" and len(inputs["input_ids"]) > 2:
        raise MemoryError
    return compute_loss(self, model, inputs, **keywords)

SupervisedTrainer.compute_loss = in_little_memory
runpy.run_module("ttlora", run_name="__main__")
"""


@pytest.mark.slow
@pytest.mark.parametrize("rows_at_once", ["auto", None])
def test_memory_that_runs_out_in_one_of_them(rows_at_once, llama32, tmp_path):
    (tmp_path / "tight.py").write_text(TIGHT)
    two, one = (recipe_of(llama32, tmp_path, "text", name, rows_at_once=rows_at_once) for name in ("two", "one"))
    statuses, _, told = end(start(2, two, (str(tmp_path / "tight.py"),)))
    if rows_at_once is None:
        assert statuses == [1, 1]
        assert "out of memory: set --rows-at-once to auto" in told[0]
        return
    assert statuses == [0, 0], told
    assert told[0].count("memory ran out: going on with 4 rows at once\n") == 1
    assert "memory" not in told[1]
    train(one, quiet=True)
    assert curve(two) == pytest.approx(curve(one), rel=1e-4)


@pytest.mark.slow
def test_a_base_of_4_bits_is_divided(wide, tmp_path):
    pytest.importorskip("bitsandbytes")
    keys = {"quantize": "4bit", "dtype": "float32"}
    two, one = (recipe_of(wide, tmp_path, "generation", name, shard=name == "two", **keys) for name in ("two", "one"))
    statuses, _, told = end(start(2, two))
    assert statuses == [0, 0], told
    train(one, quiet=True)
    assert curve(two) == pytest.approx(curve(one), rel=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"batch_size": 9}, "9 rows at a time do not divide among 2 processes"),
        ({"optimizer": "adamw_torhc"}, "did you mean adamw_torch?"),
    ],
)
def test_what_is_wrong_is_said_once(keys, message, llama32, tmp_path):
    statuses, printed, told = end(start(2, recipe_of(llama32, tmp_path, "text", "out", **keys)))
    assert statuses == [2, 2]
    assert printed == ["", ""]
    assert message in told[0]
    assert sum(text.count("ttlora: error:") for text in told) == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_more_processes_than_rows(llama32, tmp_path):
    recipe = recipe_of(llama32, tmp_path, "text", "out", train=str(tmp_path / "two.jsonl"), batch_size=3)
    (tmp_path / "two.jsonl").write_text('{"text": "plain film"}\n{"text": "great film"}\n')
    statuses, _, told = end(start(3, recipe))
    assert statuses == [2] * 3
    assert "3 processes were started, and there are 2 training rows: start fewer" in told[0]


def test_one_process_says_how_to_use_all_gpus(llama32, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    train(recipe_of(llama32, tmp_path, "text", "out", epochs=1))
    told = capsys.readouterr().err
    assert "1 of 4 GPUs is used; torchrun --nproc-per-node 4 -m ttlora train ... uses all\n" in told


def test_deepspeed_is_refused(llama32, tmp_path, monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    with pytest.raises(UserError, match=r"accelerate was told to divide the model by DeepSpeed.*: start without"):
        train(recipe_of(llama32, tmp_path, "text", "out"), quiet=True)
    assert not (tmp_path / "out").exists()


@pytest.mark.skipif(tuple(map(int, torch.__version__.split(".")[:2])) < (2, 7), reason="needs torch 2.7")
def test_accelerate_asks_for_it(llama32, tmp_path, monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    assert train(recipe_of(llama32, tmp_path, "text", "out", epochs=1), quiet=True).recipe["shard"]


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"method": "full"}, "`shard` divides weights that are frozen, and method full trains the model's own"),
        ({"quantize": "8bit"}, "`shard`: bitsandbytes' weights of 8 bits cannot be divided: set `quantize` to 4bit"),
        ({"compile": True}, "`shard` and `compile` do not go together"),
        ({"rows_at_once": "auto"}, "`shard`: memory that runs out in one process stops all: set `rows_at_once`"),
    ],
)
def test_what_cannot_be_divided(keys, message, llama32, tmp_path):
    with pytest.raises(UserError, match=message):
        train(recipe_of(llama32, tmp_path, "text", "out", shard=True, **keys), quiet=True)
    assert not (tmp_path / "out").exists()
