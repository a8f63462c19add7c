"""Peak memory of a training step: the bytes of all live tensors above the model's own.

    python benchmarks/memory.py [--json memory.json]

The steps are those of step.py. Every storage that an operator makes is counted from then until it is freed: what is
kept for the backward, gradients and the optimizer's state, in the second step, when that state is there. It is not what
the process takes from the system but an exact count, the same in every run. Bar: at most LoRA's.
"""

import gc
from collections.abc import Callable

from contestants import TT
from measuring import LORA, Bar, Row, parse, publish
from step import contestants, models_and_batches, step
from torch import Tensor, nn
from transformers import PreTrainedModel

from ttlora.planner.live_bytes import LiveBytes


def main() -> None:
    arguments = parse(__doc__, rounds=None)
    rows = [row for case, model, batch in models_and_batches(arguments.dtype) for row in measure(case, model, batch)]
    publish(arguments, "memory", rows)


def measure(case: str, model: PreTrainedModel, batch: dict[str, Tensor]) -> list[Row]:
    peaks = {name: peak_bytes(m, step(m, batch)) for name, m in contestants(model).items()}
    rows = []
    for name, peak in peaks.items():
        figures = {"bytes": peak, "to_frozen": peak / peaks["frozen"], "to_lora": peak / peaks[LORA]}
        bars = (Bar("x LoRA's peak", 1.0, figures["to_lora"]),) if name == TT else ()
        rows.append(Row(case, name, figures, bars))
    return rows


def peak_bytes(model: nn.Module, run: Callable[[], object]) -> int:
    """The most that is alive at once during the second run, in bytes, apart from the model's parameters and buffers."""
    live = LiveBytes([*model.parameters(), *model.buffers()])
    with live:
        run()
        # what only cycles hold is freed here, and not whenever the collector happens to run
        gc.collect()
        live.peak = live.bytes
        run()
    return live.peak


if __name__ == "__main__":
    main()
