"""A batch whose rows name their adapters, against the same batch through one active adapter.

    python benchmarks/mixed_batch.py [--rounds 15] [--json mixed_batch.json]

32 rows of 32 tokens through a BERT of 4 layers of 768, on which 1, 8, 32 and 256 adapters are loaded; the rows name as
many of them as they can (PEFT's `adapter_names`), so that with 32 and with 256 no two rows share one. The ratio to LoRA
is that of the same kind of batch; VeRA has no mixed batches. Bar: 32 rows from 32 TT-LoRA adapters take at most 1.05
times what one adapter takes.
"""

import copy
from collections.abc import Callable
from typing import Any

import torch
from contestants import TT, adapted, adapter_configs, encoder
from measuring import LORA, Bar, Row, compare, in_turn, parse, publish, ratio
from torch import Tensor
from transformers import PreTrainedModel

COUNTS = (1, 8, 32, 256)
FROZEN = "frozen"


def main() -> None:
    arguments = parse(__doc__)
    ids = torch.randint(1000, 30000, (32, 32))
    # of few layers: PEFT takes longer for each adapter it adds, minutes for 256 on 12 layers
    model = encoder(arguments.dtype, num_hidden_layers=4)
    publish(arguments, "mixed_batch", measure(model, ids, COUNTS, arguments.rounds))


def measure(model: PreTrainedModel, ids: Tensor, counts: tuple[int, ...], rounds: int) -> list[Row]:
    configs = {name: config for name, config in adapter_configs().items() if name in (TT, LORA)}
    models = {name: adapted(model.eval(), config).eval() for name, config in configs.items()}
    rows: list[Row] = []
    for count in counts:
        contestants = {FROZEN: forward(model, ids)}
        for name, with_adapters in models.items():
            add_adapters(with_adapters, configs[name], count)
            adapters = list(with_adapters.peft_config)
            # spread over all that are loaded
            named = [adapters[row * max(count // len(ids), 1) % count] for row in range(len(ids))]
            contestants[one(name)] = forward(with_adapters, ids)
            contestants[mixed(name)] = forward(with_adapters, ids, adapter_names=named)
        case = f"{len(ids)} rows, {count} adapters"
        rows += compared(case, in_turn(contestants, rounds, case=case), has_bar=count == len(ids))
    return rows


def one(name: str) -> str:
    return f"{name}, one active"


def mixed(name: str) -> str:
    return f"{name}, mixed batch"


def add_adapters(model: Any, config: Any, count: int) -> None:
    for number in range(len(model.peft_config), count):
        model.add_adapter(f"adapter-{number}", copy.deepcopy(config))


def forward(model: Any, ids: Tensor, **names: list[str]) -> Callable[[], object]:
    def run() -> object:
        with torch.no_grad():
            return model(input_ids=ids, **names).logits

    return run


def compared(case: str, seconds: dict[str, list[float]], has_bar: bool) -> list[Row]:
    figures = compare(seconds)
    for kind in (one, mixed):
        for name in (TT, LORA):
            runs = seconds[kind(name)]
            figures[kind(name)]["to_one_adapter"] = ratio(runs, seconds[one(name)])
            figures[kind(name)]["to_lora"] = ratio(runs, seconds[kind(LORA)])
    bar = Bar("x one adapter", 1.05, figures[mixed(TT)]["to_one_adapter"])
    return [Row(case, name, of, (bar,) if has_bar and name == mixed(TT) else ()) for name, of in figures.items()]


if __name__ == "__main__":
    main()
