"""Train an adapted model in two processes, once with DDP and once with FSDP2, and write down losses and cores.

Usage: python in_processes.py MODEL OUTPUT. It forks, so that the libraries are imported once, and is a script, so that
nothing has run before.
"""

import sys
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from peft import get_peft_model
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.multiprocessing.spawn import start_processes
from torch.nn.parallel import DistributedDataParallel
from transformers import AutoModelForCausalLM

from ttlora import TTLoraConfig

STEPS = 4
IDS = torch.randint(4, 24, (STEPS, 4, 8), generator=torch.Generator().manual_seed(1))


def adapted(folder: str) -> nn.Module:
    torch.manual_seed(0)
    base = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return get_peft_model(base, TTLoraConfig(target_modules="all-linear", r=3))


def train(model: nn.Module, rank: int, processes: int) -> list[Tensor]:
    """Each process takes its rows of every batch; the loss before each step."""
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    losses = []
    for batch in IDS:
        rows = batch[rank::processes]
        loss = model(input_ids=rows, labels=rows).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.detach())
    return losses


def cores_of(model: nn.Module) -> dict[str, Tensor]:
    cores = {n.removeprefix("module."): p.detach() for n, p in model.named_parameters() if p.requires_grad}
    return {name: core.full_tensor() if isinstance(core, DTensor) else core for name, core in cores.items()}


def work(rank: int, processes: int, folder: str, output: Path) -> None:
    torch.set_num_threads(1)
    store = f"file://{output}/store"
    dist.init_process_group("gloo", store, timedelta(seconds=60), world_size=processes, rank=rank)
    for kind in ("ddp", "fsdp"):
        model = adapted(folder)
        if kind == "ddp":
            model = DistributedDataParallel(model)
        else:
            mesh = dist.device_mesh.init_device_mesh("cpu", (processes,))
            for layer in model.base_model.model.model.layers:
                fully_shard(layer, mesh=mesh)
            fully_shard(model, mesh=mesh)
            assert all(isinstance(p, DTensor) for p in model.parameters())
        losses = torch.stack(train(model, rank, processes))
        dist.all_reduce(losses)
        cores = cores_of(model)
        if rank == 0:
            torch.save({"losses": losses / processes, "cores": cores}, output / kind)
    dist.destroy_process_group()


if __name__ == "__main__":
    start_processes(work, (2, sys.argv[1], Path(sys.argv[2])), nprocs=2, start_method="fork")
