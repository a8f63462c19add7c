"""One adapted linear layer, forward and backward, against the same layer frozen.

    python benchmarks/layer.py [--dtype bfloat16] [--json layer.json]

Every contestant computes the output and the gradients of its input and of its adapter. Overhead is its time over the
frozen layer's, less one. Bar: TT-LoRA's overhead is at most 0.35 of LoRA's (0.5 at 768 wide, 512 tokens).
"""

from collections.abc import Callable

import torch
from contestants import TT, adapted, adapter_configs
from measuring import LORA, Bar, Row, compare, in_turn, parse, publish
from torch import nn

# width, tokens -> the largest part of LoRA's overhead
BARS = {(384, 2048): 0.35, (768, 4096): 0.35, (768, 512): 0.5, (4096, 512): 0.35}


def main() -> None:
    # a run takes milliseconds, and overheads are differences: many rounds
    arguments = parse(__doc__, rounds=101)
    rows = [
        row
        for (width, tokens), limit in BARS.items()
        for row in measure(width, tokens, limit, arguments.dtype, arguments.rounds)
    ]
    publish(arguments, "layer", rows)


def measure(width: int, tokens: int, limit: float, dtype: torch.dtype, rounds: int) -> list[Row]:
    model = nn.ModuleDict({"linear": nn.Linear(width, width)}).to(dtype).requires_grad_(False)
    x = torch.randn(tokens, width, dtype=dtype, requires_grad=True)
    dy = torch.randn(tokens, width, dtype=dtype)
    layers = {"frozen": model["linear"]}
    for name, config in adapter_configs(target_modules=["linear"]).items():
        layers[name] = adapted(model, config).base_model.model["linear"]

    case = f"{width} wide, {tokens:,} tokens"
    figures = compare(in_turn({name: both_ways(layer, x, dy) for name, layer in layers.items()}, rounds, case=case))
    lora_overhead = figures[LORA]["to_frozen"] - 1
    rows = []
    for name, of_layer in figures.items():
        of_layer["overhead"] = of_layer["to_frozen"] - 1
        of_layer["overhead_to_lora"] = of_layer["overhead"] / lora_overhead
        bars = (Bar("of LoRA's overhead", limit, of_layer["overhead_to_lora"]),) if name == TT else ()
        rows.append(Row(case, name, of_layer, bars))
    return rows


def both_ways(layer: nn.Module, x: torch.Tensor, dy: torch.Tensor) -> Callable[[], object]:
    learned = [x, *(parameter for parameter in layer.parameters() if parameter.requires_grad)]
    return lambda: torch.autograd.grad(layer(x), learned, dy)


if __name__ == "__main__":
    main()
