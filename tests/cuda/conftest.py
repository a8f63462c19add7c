"""Where the tests of this folder run: on the GPU, if there is one, and on the CPU, so that they stay in order."""

from collections.abc import Iterator

import pytest
import torch

from tests.cuda.devices import GPU
from tests.ecosystem import conftest as shared
from ttlora.finetune.machine import cpu_threads


@pytest.fixture(params=["cpu", GPU])
def device(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(autouse=True)
def seeded() -> Iterator[None]:
    torch.manual_seed(0)
    with cpu_threads(1):  # the tensors are too small for more
        yield


@pytest.fixture
def ids(device: str, monkeypatch: pytest.MonkeyPatch) -> torch.Tensor:
    """The tokens that the helpers of tests/ecosystem give a model, on its device."""
    monkeypatch.setattr(shared, "IDS", shared.IDS.to(device))
    return shared.IDS
