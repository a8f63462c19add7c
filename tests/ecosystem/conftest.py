"""What the tests with other libraries share: token ids, a few steps of training, logits."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ttlora import TTLoraConfig

# query and value of a Llama, at a rank of 5
ATTENTION: dict[str, Any] = {"target_modules": ["q_proj", "v_proj"], "r": 5, "alpha": 4.0}
IDS = torch.randint(4, 24, (4, 8), generator=torch.Generator().manual_seed(1))


def logits(model: nn.Module) -> Tensor:
    """What the model says, in evaluation, about the same tokens each time."""
    with torch.no_grad():
        return model.eval()(IDS).logits


def train(model: nn.Module, steps: int = 8, rate: float = 3e-3) -> list[float]:
    """Teach a causal model the same tokens; the loss before each step.

    At a rate of 1e-2, at which an adapter of query and value learns, one of all the default places overshoots in a
    model that is so small.
    """
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=rate)
    losses = []
    for _ in range(steps):
        loss = model.train()(IDS, labels=IDS).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


def cores_of(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters() if ".ttlora_cores." in name}


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture
def random_update() -> Callable[..., TTLoraConfig]:
    """Builds a config whose update changes the model from the start."""

    def build(**options: object) -> TTLoraConfig:
        return TTLoraConfig(init_weights=False, **options)

    return build
