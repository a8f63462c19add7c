"""The built wheel with the core alone, in an empty environment: what it brings, and what can be done with it."""

import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from ttlora.cli.main import COMMANDS

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
ADAPT = """
import sys
import torch
from peft import PeftModel, get_peft_model
from transformers import BertConfig, BertModel
import ttlora

torch.manual_seed(0)
config = BertConfig(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, vocab_size=50)
BertModel(config).save_pretrained("model")
base = BertModel.from_pretrained("model")
model = get_peft_model(base, ttlora.TTLoraConfig(r=3, target_modules=["query", "value"]))
ids = torch.arange(12).reshape(2, 6)
optimizer = torch.optim.AdamW([weight for weight in model.parameters() if weight.requires_grad], lr=0.1)
for _ in range(2):
    model(input_ids=ids).last_hidden_state.square().mean().backward()
    optimizer.step()
    optimizer.zero_grad()
model.save_pretrained("adapter")
again = PeftModel.from_pretrained(BertModel.from_pretrained("model"), "adapter")
torch.testing.assert_close(again(input_ids=ids).last_hidden_state, model(input_ids=ids).last_hidden_state)
assert ttlora.plan("model", r=3).adapter_parameters == ttlora.inspect("adapter").adapter_parameters
try:
    ttlora.train
except ModuleNotFoundError as error:
    assert "pip install 'ttlora[train]'" in str(error), error
else:
    raise AssertionError("ttlora.train came without its extra")
"""


INSTALLED = """
import json, re
from importlib.metadata import distributions
needs = {dist.name: [one for one in dist.requires or [] if "extra ==" not in one] for dist in distributions()}
print(json.dumps({re.sub("[-_.]+", "-", name).lower(): requirements for name, requirements in needs.items()}))
"""


def names(requirements: list[str]) -> set[str]:
    return {canonicalize_name(Requirement(one).name) for one in requirements}


@pytest.mark.slow
def test_the_core_alone_adapts_plans_and_exports(tmp_path: Path) -> None:
    def run(*command: object, status: int = 0) -> str:
        environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
        done = subprocess.run([*map(str, command)], cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert done.returncode == status, done.stdout + done.stderr
        return done.stdout if status == 0 else done.stderr

    run(sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", tmp_path / "dist", ROOT)
    (wheel,) = (tmp_path / "dist").glob("*.whl")
    run(sys.executable, "-m", "venv", tmp_path / "empty")
    python, ttlora = tmp_path / "empty" / "bin" / "python", tmp_path / "empty" / "bin" / "ttlora"
    run(python, "-m", "pip", "install", "--quiet", "-c", ROOT / "constraints.txt", wheel)

    installed = json.loads(run(python, "-c", INSTALLED))
    extras = set().union(*(names(PROJECT["optional-dependencies"][extra]) for extra in ("train", "report", "search")))
    assert names(PROJECT["dependencies"]) <= installed.keys()
    # torch itself needs jinja2
    needed = set().union(*(names(requirements) for requirements in installed.values()))
    assert extras - {"ttlora"} - needed, "the extras bring something"
    assert not (extras - {"ttlora"} - needed) & installed.keys()

    run(python, "-c", ADAPT)
    assert "TT-LoRA for model" in run(ttlora, "plan", "--model", "model")
    assert json.loads(run(ttlora, "inspect", "adapter", "--json"))["method"] == "tt-lora"
    assert "LoRA of rank 3" in run(ttlora, "export", "adapter", "--output", "lora")
    assert "relative error" in run(ttlora, "import", "lora", "--output", "imported")
    assert "relative error" in run(ttlora, "round", "adapter", "--output", "rounded", "--r", "2")
    assert "BertModel with 4 updates added" in run(ttlora, "merge", "adapter", "--output", "merged", "--model", "model")
    for name, command in COMMANDS.items():
        if command.extras:
            flags = ["x"] if command.positional else ["--config", "x"] if name in ("compare", "search") else []
            flags += {"train": ["--model=m", "--task=t", "--output=o"], "predict": ["--input=i"]}.get(name, [])
            flags += ["--output=o"] if name in ("report", "route") else []
            error = run(ttlora, name, *flags, status=2)
            assert f"python -m pip install 'ttlora[{','.join(command.extras)}]'" in error
            assert error.count("\n") == 1
