"""Searches of models that have a config and no weights."""

from collections.abc import Callable
from pathlib import Path

import pytest
from transformers import BertConfig, LlamaConfig

from ttlora.experiments.search.config import SearchPlan
from ttlora.experiments.search.folder import SearchFolder, Trial
from ttlora.experiments.search.search import Search
from ttlora.experiments.search.space import Space
from ttlora.record import Record


@pytest.fixture(scope="session")
def architectures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the config of a BERT of 24 x 24 matrices, and of a Llama whose v_proj has 12 x 24."""
    folder = tmp_path_factory.mktemp("architectures")
    sizes = {"hidden_size": 24, "num_hidden_layers": 2, "intermediate_size": 36, "vocab_size": 30}
    BertConfig(**sizes, num_attention_heads=2).save_pretrained(folder / "bert")
    LlamaConfig(**sizes, num_attention_heads=4, num_key_value_heads=2).save_pretrained(folder / "llama")
    return folder


@pytest.fixture
def search(tmp_path: Path, architectures: Path) -> Callable[..., SearchPlan]:
    """The plan of a YAML file with the given keys beside those of the smallest search."""

    def read(model: str = "bert", **keys: str) -> SearchPlan:
        path = tmp_path / "s.yaml"
        place = architectures / model
        lines = {"model": str(place if place.exists() else model), "task": "glue/sst2", **keys}
        path.write_text("".join(f"{key}: {value}\n" for key, value in lines.items()))
        return SearchPlan.read(path)

    return read


@pytest.fixture
def space_of(search: Callable[..., SearchPlan]) -> Callable[..., Space]:
    """The space of such a plan."""
    return lambda **keys: Space.of(search(**keys))


@pytest.fixture
def begun(bert, data, tmp_path):
    """A search of a tiny model, with its folder."""
    path = tmp_path / "s.yaml"
    path.write_text(
        f"""
model: {bert}
task: glue/sst2
data: {data}
epochs: 2
space:
  shape: [[4, 8, 8, 4], [32, 32]]
  r: [1, 2, 12, 16]
  alpha: [1, 2, 4, 8]
  learning_rate: {{from: 1e-4, to: 1e-2, scale: log}}
sampler: optuna
max_adapter_size: 1200
trials: 12
"""
    )
    plan = SearchPlan.read(path)
    folder = SearchFolder(tmp_path / "out")
    with folder.claim(resume=False):
        return Search(plan, Space.of(plan), folder)


@pytest.fixture
def end():
    """Make a trial's result."""
    return end_trial


def end_trial(trial: Trial, loss: float, score: float = 0.5, epochs: int = 2) -> None:
    """Make a trial's result."""
    trial.folder.path.mkdir(parents=True, exist_ok=True)
    Record(
        method="tt-lora", model="m", task="glue/sst2", seed=0, adapter_parameters=trial.parameters, head_parameters=66,
        trainable_parameters=trial.parameters + 66, adapter_bytes=1000, metrics={"accuracy": score},
        primary_metric="accuracy", validation_loss=loss, best_epoch=1, epochs=epochs, train_seconds=1.0,
        seconds_per_step=0.1, peak_memory_bytes=10**8, recipe=trial.recipe.as_dict(), versions={},
    ).write(trial.folder.result)  # fmt: skip
