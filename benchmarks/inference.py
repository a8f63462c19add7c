"""A forward pass without gradients: the base model, and adapters on it, merged and not.

    python benchmarks/inference.py [--rounds 15] [--json inference.json]

The models are those of step.py, with 1, 64, 512 and 2,048 tokens: rows of up to 128 tokens to BERT; one row to the
Llama, of which it computes the last token's logits, as in generation. The adapted models are unmerged unless they say
otherwise. Bar: unmerged TT-LoRA takes at most 1.02 times the base model's time, with 512 tokens and more.
"""

import copy
from collections.abc import Callable, Iterator
from typing import Any

import torch
from contestants import TT, adapted, adapter_configs, encoder, llama
from measuring import Bar, Row, compare, in_turn, parse, publish
from torch import Tensor
from transformers import PreTrainedModel

TOKENS = (1, 64, 512, 2048)
BASE = "base"


def main() -> None:
    arguments = parse(__doc__)
    rows: list[Row] = []
    for name, model, batches in models_and_batches(arguments.dtype):
        models = contestants(model)
        for batch in batches:
            rows += measure(name, models, batch, arguments.rounds)
    publish(arguments, "inference", rows)


def models_and_batches(dtype: torch.dtype) -> Iterator[tuple[str, PreTrainedModel, list[Tensor]]]:
    sizes = [(-(-tokens // 128), min(tokens, 128)) for tokens in TOKENS]
    yield "BERT 12 x 768", encoder(dtype), [torch.randint(1000, 30000, size) for size in sizes]
    yield "Llama 30 x 576", llama(dtype), [torch.randint(1000, 30000, (1, tokens)) for tokens in TOKENS]


def contestants(model: PreTrainedModel) -> dict[str, Any]:
    models = {BASE: model} | {name: adapted(model, config) for name, config in adapter_configs().items()}
    # with weights of its own, which the merge changes
    models[f"{TT}, merged"] = adapted(copy.deepcopy(model), adapter_configs()[TT]).merge_and_unload()
    return {name: model.eval() for name, model in models.items()}


def measure(name: str, models: dict[str, Any], ids: Tensor, rounds: int) -> list[Row]:
    case = f"{name}, {ids.numel():,} tokens"
    seconds = in_turn({name: forward(model, ids) for name, model in models.items()}, rounds, case=case)
    figures = compare(seconds, frozen=BASE)
    bars = {TT: (Bar("x the base", 1.02, figures[TT]["to_frozen"]),)} if ids.numel() >= 512 else {}
    return [Row(case, name, of_model, bars.get(name, ())) for name, of_model in figures.items()]


def forward(model: Any, ids: Tensor) -> Callable[[], object]:
    of_last_token = {"logits_to_keep": 1} if model.config.model_type == "llama" else {}

    def run() -> object:
        with torch.no_grad():
            return model(input_ids=ids, **of_last_token).logits

    return run


if __name__ == "__main__":
    main()
