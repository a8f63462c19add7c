"""Searches of models that have a config and no weights."""

from collections.abc import Callable
from pathlib import Path

import pytest
from transformers import BertConfig, LlamaConfig

from ttlora.experiments.search.config import SearchPlan
from ttlora.experiments.search.space import Space


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
        if place.exists() and "method" not in keys:
            lines.setdefault("targets", "[q_proj, v_proj]" if model == "llama" else "[query, value]")
        path.write_text("".join(f"{key}: {value}\n" for key, value in lines.items()))
        return SearchPlan.read(path)

    return read


@pytest.fixture
def space_of(search: Callable[..., SearchPlan]) -> Callable[..., Space]:
    """The space of such a plan."""
    return lambda **keys: Space.of(search(**keys))
