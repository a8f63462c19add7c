"""What the tests of changed adapters share: what a model answers, and how a change is refused."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from ttlora import TTLoraConfig
from ttlora.adapters.read import Adapter, read_adapter
from ttlora.errors import UserError

TOKENS = torch.arange(4, 20).reshape(2, 8)


# a rank that leaves something to round
RANK: dict[str, Any] = {"r": 5, "alpha": 4.0}


def of_bert(**options: Any) -> TTLoraConfig:
    """A config that adapts query and value of a BERT, at a rank of 5."""
    return TTLoraConfig(**{"target_modules": ["query", "value"], **RANK, **options})


def of_llama(**options: Any) -> TTLoraConfig:
    """A config that adapts query and value of a Llama, at a rank of 5."""
    return TTLoraConfig(**{"target_modules": ["q_proj", "v_proj"], **RANK, **options})


def outputs(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(input_ids=TOKENS)[0]


def causal(llama: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(llama, dtype=torch.float32)


def assert_refused(change: Callable[[Adapter], object], folder: Path, *parts: str) -> None:
    """The change of the adapter in a folder ends in one line that holds all parts."""
    with pytest.raises(UserError) as error:
        change(read_adapter(folder))
    assert "\n" not in str(error.value)
    for part in parts:
        assert part in str(error.value)
