"""DoTA's start: the TT-SVD of a pretrained weight of 4096 x 4096, as every matrix of LLaMA2-7B's attention is.

    python benchmarks/dota.py [--rounds 5] [--dtype bfloat16] [--json dota.json]

Bar: at most 2 s a matrix. How much time it takes follows from sizes alone, so the weight is random.
"""

from collections.abc import Callable

import torch
from measuring import Bar, Row, compare, in_turn, parse, publish

from ttlora.tensor_train import TTShape, Update
from ttlora.tensor_train.start import pretrained_update

SIZE, SECONDS = 4096, 2.0
SHAPES: dict[str, list[int]] = {
    "three cores of 16 a side, as by default": [16] * 6,
    "four cores of 8 a side": [8] * 8,
    "two cores of 64 a side": [64] * 4,
    "one core a side": [4096] * 2,
}
RANKS = (2, 8)


def main() -> None:
    arguments = parse(__doc__, rounds=5)
    weight = torch.randn(SIZE, SIZE).to(arguments.dtype) * 0.02
    contestants = {
        f"{name}, r={r}": start(Update(TTShape.build(SIZE, SIZE, dims, r)), weight)
        for name, dims in SHAPES.items()
        for r in RANKS
    }
    seconds = in_turn(contestants, arguments.rounds, warm_up=1, case="TT-SVD")
    rows = [
        Row(f"{SIZE} x {SIZE}", name, figures, (Bar("s a matrix", SECONDS, figures["seconds"]),))
        for name, figures in compare(seconds, frozen=None).items()
    ]
    publish(arguments, "dota", rows)


def start(update: Update, weight: torch.Tensor) -> Callable[[], object]:
    return lambda: pretrained_update(update, weight)


if __name__ == "__main__":
    main()
