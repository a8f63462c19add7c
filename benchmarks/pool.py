"""A batch whose rows name their adapters among 10,000 in one pool, against one adapter and the base model.

    python benchmarks/pool.py [--adapters 10000] [--rounds 7] [--dtype bfloat16] [--json pool.json]

256 rows through a Llama of 2 layers of 576 with adapters of query and value: a forward pass over 16 tokens a row, and
4 tokens generated greedily from 4. Each of the 256 rows names another of the pool's adapters; LoRA has as many
adapters as there are rows, which PEFT holds by a module each. The pool is loaded from folders, adapter by adapter.
Bytes are those of 10,000 adapters of LLaMA2-7B's query and value in 16 bit, as counted on the tensors of 100.
"""

import tempfile
import time
from collections.abc import Callable
from typing import Any

import torch
from contestants import TT, adapted, adapter_configs, llama, llama2_7b_layers, sharing_weights
from measuring import LORA, Row, compare, in_turn, parse, publish, ratio
from mixed_batch import FROZEN, add_adapters, mixed, one
from torch import Tensor
from transformers import PreTrainedModel

import ttlora

ROWS, MANY = 256, 10_000


def main() -> None:
    options = {"--adapters": {"type": int, "default": MANY, "help": "adapters in the pool (default: %(default)s)"}}
    arguments = parse(__doc__, rounds=7, options=options)
    # with next to no vocabulary: its products are nobody's difference
    model = llama(arguments.dtype, num_hidden_layers=2, vocab_size=64, use_cache=True).eval()
    ids = torch.randint(0, 64, (ROWS, 16))
    rows = [*sizes(), *measure(model, ids, arguments.adapters, arguments.rounds)]
    publish(arguments, "pool", rows)


def sizes() -> list[Row]:
    """The bytes of 10,000 adapters of LLaMA2-7B, from those of a few."""
    model = llama2_7b_layers(32, torch.bfloat16, intermediate_size=8)
    lora = adapted(model, adapter_configs()[LORA], autocast_adapter_dtype=False)
    of_lora = sum(weight.nbytes for name, weight in lora.named_parameters() if "lora_" in name)
    pool, _ = loaded(model, 100)
    of_tt = sum(adapters.cores.nbytes for adapters in pool.model.base_model.pooled) // 100
    case = f"LLaMA2-7B, {MANY:,} adapters in 16 bit"
    return [
        Row(case, name, {"bytes": MANY * each, "bytes_to_lora": each / of_lora})
        for name, each in ((TT, of_tt), (LORA, of_lora))
    ]


def loaded(model: PreTrainedModel, count: int) -> tuple[ttlora.AdapterPool, float]:
    """A pool of `count` adapters, and the seconds that each took to load."""
    single = adapted(model, adapter_configs()[TT], autocast_adapter_dtype=False)
    with tempfile.TemporaryDirectory() as folder:
        single.save_pretrained(folder)
        started = time.perf_counter()
        pool = ttlora.load_many(sharing_weights(model), {f"adapter-{n}": folder for n in range(count)})
        return pool, (time.perf_counter() - started) / count


def measure(model: PreTrainedModel, ids: Tensor, count: int, rounds: int) -> list[Row]:
    pool, seconds = loaded(model, count)
    config = adapter_configs()[LORA]
    lora = adapted(model, config).eval()
    add_adapters(lora, config, len(ids))
    names = pool.adapter_names
    # spread over the pool
    named = [names[row * (count // len(ids))] for row in range(len(ids))]
    pool.set_adapter(named[0])
    contestants = {
        FROZEN: (model, {}),
        one(TT): (pool.model, {}),
        f"{TT}, all rows name one": (pool.model, {"adapter_names": named[:1] * len(ids)}),
        mixed(TT): (pool.model, {"adapter_names": named}),
        one(LORA): (lora, {}),
        mixed(LORA): (lora, {"adapter_names": list(lora.peft_config)}),
    }
    rows = [
        Row(f"{count:,} adapters", f"{TT}, loading each", {"seconds": seconds}),
        Row(f"{count:,} adapters", f"{TT}, set_adapter", {"seconds": switching(pool, named)}),
    ]
    for case, call in {"forward, 16 tokens": forward, "4 tokens from 4": generation}.items():
        calls = {name: call(of, ids, options) for name, (of, options) in contestants.items()}
        rows += compared(case, in_turn(calls, rounds, case=case))
    return rows


def switching(pool: ttlora.AdapterPool, names: list[str]) -> float:
    """The median of the seconds that another adapter takes to become the active one."""
    taken = []
    for name in names:
        started = time.perf_counter()
        pool.set_adapter(name)
        taken.append(time.perf_counter() - started)
    return sorted(taken)[len(taken) // 2]


def forward(model: Any, ids: Tensor, names: dict[str, list[str]]) -> Callable[[], object]:
    def run() -> object:
        with torch.no_grad():
            return model(input_ids=ids, use_cache=False, **names).logits

    return run


def generation(model: Any, ids: Tensor, names: dict[str, list[str]]) -> Callable[[], object]:
    prompt = ids[:, :4]
    options = {"attention_mask": torch.ones_like(prompt), "do_sample": False, "pad_token_id": 0}

    def run() -> object:
        return model.generate(input_ids=prompt, max_new_tokens=4, min_new_tokens=4, **options, **names)

    return run


def compared(case: str, seconds: dict[str, list[float]]) -> list[Row]:
    figures = compare(seconds)
    for kind in (TT, LORA):
        for name in figures:
            if name.startswith(kind):
                figures[name]["to_one_adapter"] = ratio(seconds[name], seconds[one(kind)])
    for figure in figures.values():
        figure.pop("to_lora", None)
    return [Row(case, name, of) for name, of in figures.items()]


if __name__ == "__main__":
    main()
