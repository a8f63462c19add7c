"""The script for reinforcement learning with TRL, on a tiny model in a folder."""

import importlib.util
import re
import shutil
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from safetensors import safe_open
from transformers import AutoModelForCausalLM

from tests.conftest import PLAIN

SCRIPT = Path(__file__).parents[2] / "examples" / "grpo" / "grpo.py"
TEMPLATE = "{% for message in messages %}{{ message['content'] }} {% endfor %}"


@pytest.fixture
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("grpo", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_rewards(script):
    said = ["12", " 12.", "It is 12", "1 2", "120", ""]
    answers = [[{"role": "assistant", "content": text}] for text in said]
    assert script.right_sum(answers, ["12"] * len(said)) == [1, 1, 0.5, 0, 0, 0]


def test_it_trains_and_saves(script, llama, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    shutil.copytree(llama, tmp_path / "model")
    model = AutoModelForCausalLM.from_pretrained(llama)
    # with random weights as they come, every word stays about as likely as any other
    model.lm_head.weight.data *= 20
    model.save_pretrained(tmp_path / "model")
    (tmp_path / "model" / "chat_template.jinja").write_text(TEMPLATE)
    # a reward that a model of a few words can rise: the share of the first ten among those that it says
    words = set(PLAIN)

    def share(completions: list[list[dict[str, str]]], **_: Any) -> list[float]:
        said = [message["content"].split() or [""] for (message,) in completions]
        return [sum(word in words for word in answer) / len(answer) for answer in said]

    monkeypatch.setattr(script, "right_sum", share)
    options = ["--model", tmp_path / "model", "--output", tmp_path / "out", "--steps", 24, "--r", 4]
    options += ["--completions", 16, "--learning-rate", 0.01]
    monkeypatch.setattr("sys.argv", ["grpo.py", *map(str, options)])
    script.main()
    told = re.search(r"mean reward ([\d.]+) in the first 6 steps, ([\d.]+) in the last 6", capsys.readouterr().out)
    assert told is not None
    assert float(told[2]) > float(told[1]) + 0.1
    with safe_open(tmp_path / "out" / "adapter_model.safetensors", "pt") as file:
        assert all("ttlora_cores" in name for name in file.keys())  # noqa: SIM118
    with pytest.raises(SystemExit, match="is not empty: name another --output"):
        script.main()


def test_a_model_without_a_template_is_refused(script, llama, tmp_path, monkeypatch):
    monkeypatch.setattr("sys.argv", ["grpo.py", "--model", str(llama), "--output", str(tmp_path / "out")])
    with pytest.raises(SystemExit, match="has no chat template"):
        script.main()
