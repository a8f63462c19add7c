"""Operators that one adapted matrix adds to a training step: on a GPU each is a kernel that has to be started.

    python benchmarks/operators.py [--markdown] [--json operators.json]

With few tokens a GPU waits for its kernels to be started, and not for their arithmetic. Counted are the operators of
forward and backward of a Llama of eight layers of SmolLM2's width (576), query and value adapted, over those of the
model without adapter with the same reach: its backward goes down to the embeddings. Views are left out, which start
nothing. The counts are exact and the same in every run, on every device. The products alone are six: two forward, four
backward. Bars: as they stand in BARS.
"""

from collections.abc import Mapping
from typing import Any

import torch
from contestants import TT, llama
from measuring import Bar, Row, parse, publish
from step import contestants
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

LAYERS = 8
MATRICES = 2  # a layer
# the model's dtype, whether it runs under bfloat16 autocast, and the most operators a matrix
BARS = {
    "float32": (torch.float32, False, 8.0),
    "bfloat16": (torch.bfloat16, False, 8.5),
    "bfloat16 under autocast": (torch.bfloat16, True, 8.5),
    "float32 under autocast": (torch.float32, True, 11.0),
}


def main() -> None:
    arguments = parse(__doc__, rounds=None)
    publish(arguments, "operators", [row for case in BARS for row in measure(case)])


def measure(case: str, **sizes: Any) -> list[Row]:
    dtype, autocast, most = BARS[case]
    model = llama(dtype, **{"num_hidden_layers": LAYERS, **sizes})
    ids = torch.randint(model.config.vocab_size, (2, 16))
    batch = {"input_ids": ids, "labels": ids}
    counts = {name: operators(m, batch, autocast) for name, m in contestants(model).items()}
    frozen = counts.pop("frozen")
    rows = []
    for name, count in counts.items():
        added = (count - frozen) / (MATRICES * model.config.num_hidden_layers)
        bars = (Bar("operators a matrix", most, added),) if name == TT else ()
        rows.append(Row(case, name, {"operators_a_matrix": added}, bars))
    return rows


def operators(model: nn.Module, batch: Mapping[str, Tensor], autocast: bool) -> int:
    """The operators of a forward and a backward, the first step left out, in which caches are filled."""
    device = next(model.parameters()).device.type

    def step() -> None:
        model.zero_grad()
        with torch.autocast(device, torch.bfloat16, enabled=autocast):
            loss = model.train()(**batch).loss
        loss.backward()

    step()
    with _Operators() as counted:
        step()
    return counted.count


class _Operators(TorchDispatchMode):
    """Counts operators that compute something."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        # what a reshape of a fresh product gives is a view but for its name
        if not function.is_view and function is not torch.ops.aten._unsafe_view.default:
            self.count += 1
        return function(*args, **(kwargs or {}))


if __name__ == "__main__":
    main()
