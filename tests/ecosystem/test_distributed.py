"""Two gloo processes train as one does."""

import subprocess
import sys

import pytest
import torch

from tests.ecosystem import in_processes


@pytest.fixture(scope="module")
def together(llama, tmp_path_factory):
    """What two processes have learned, by the way they did it together."""
    folder = tmp_path_factory.mktemp("processes")
    command = [sys.executable, in_processes.__file__, str(llama), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-3000:]
    return {kind: torch.load(folder / kind, weights_only=True) for kind in ("ddp", "fsdp")}


@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
def test_two_processes_have_the_losses_and_the_cores_of_one(kind, together, llama):
    model = in_processes.adapted(str(llama))
    start = {name: cores.clone() for name, cores in in_processes.cores_of(model).items()}
    losses = torch.stack(in_processes.train(model, rank=0, processes=1))
    alone = in_processes.cores_of(model)
    torch.testing.assert_close(together[kind]["losses"], losses, rtol=1e-5, atol=1e-6)
    assert together[kind]["cores"].keys() == alone.keys()
    for name, cores in alone.items():
        assert (cores - start[name]).abs().max() > 1e-3
        torch.testing.assert_close(together[kind]["cores"][name], cores, rtol=1e-3, atol=1e-4)
