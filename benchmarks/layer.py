"""Adapted linear layers, forward and backward, against the same layers frozen.

    python benchmarks/layer.py [--dtype bfloat16] [--json layer.json]

Every contestant computes the output and the gradients of its input and of its adapters, for one layer and for eight in
a row, as a model has them: TT-LoRA builds the factors of all layers at once. Overhead is a time over the frozen
layers', less one. Bar: TT-LoRA's overhead is at most 0.35 of LoRA's (0.5 at 768 wide, 512 tokens).
"""

from collections import OrderedDict
from collections.abc import Callable

import torch
from contestants import TT, adapted, adapter_configs
from measuring import LORA, Bar, Row, compare, in_turn, parse, publish
from torch import nn

# of the widths that the table was measured with other dims at than "auto" chooses
SHAPES = {384: [16, 24, 24, 16]}
# width, tokens -> the largest part of LoRA's overhead
BARS = {(384, 2048): 0.35, (768, 4096): 0.35, (768, 512): 0.5, (4096, 512): 0.35}


def main() -> None:
    # overheads are small differences: many rounds
    arguments = parse(__doc__, rounds=21)
    rows = [
        row
        for layers in (1, 8)
        for (width, tokens), limit in BARS.items()
        for row in measure(layers, width, tokens, limit, arguments.dtype, arguments.rounds)
    ]
    publish(arguments, "layer", rows)


def measure(layers: int, width: int, tokens: int, limit: float, dtype: torch.dtype, rounds: int) -> list[Row]:
    named = OrderedDict((f"linear{index}", nn.Linear(width, width)) for index in range(layers))
    model = nn.Sequential(named).to(dtype).requires_grad_(False)
    x = torch.randn(tokens, width, dtype=dtype, requires_grad=True)
    dy = torch.randn(tokens, width, dtype=dtype)
    models: dict[str, nn.Module] = {"frozen": model}
    for name, config in adapter_configs(SHAPES.get(width, "auto"), target_modules=list(named)).items():
        models[name] = adapted(model, config)

    case = f"{width} wide, {tokens:,} tokens" + (f", {layers} layers" if layers > 1 else "")
    figures = compare(in_turn({name: both_ways(model, x, dy) for name, model in models.items()}, rounds, case=case))
    lora_overhead = figures[LORA]["to_frozen"] - 1
    rows = []
    for name, of_layer in figures.items():
        of_layer["overhead"] = of_layer["to_frozen"] - 1
        of_layer["overhead_to_lora"] = of_layer["overhead"] / lora_overhead
        bars = (Bar("of LoRA's overhead", limit, of_layer["overhead_to_lora"]),) if name == TT else ()
        rows.append(Row(case, name, of_layer, bars))
    return rows


def both_ways(model: nn.Module, x: torch.Tensor, dy: torch.Tensor) -> Callable[[], object]:
    learned = [x, *(parameter for parameter in model.parameters() if parameter.requires_grad)]
    return lambda: torch.autograd.grad(model(x), learned, dy)


if __name__ == "__main__":
    main()
