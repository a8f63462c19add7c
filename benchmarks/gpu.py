"""LLaMA-2-7B and LLaMA-3-8B on a GPU: the time and the peak memory of a training step, and the time of a forward pass.

    python benchmarks/gpu.py [--json gpu.json] [--seconds 400] [--rounds 5]
    python benchmarks/gpu.py --tiny --device cpu

The models are whole and their weights random: bfloat16, and the layers in bitsandbytes' 4 bits (NF4 with quantised
constants). A step is that of step.py, on 1 row of 2,048 tokens and on 8 rows of 512, with gradient checkpointing and
without; the forward pass is that of inference.py. "peak GiB" is the most that a step holds on the card, weights
included, and "bytes" what of it is neither weights nor adapter. Where memory runs out for a contestant, the table says
so, and the rest goes on. The file of `--json` is written anew after every case, and no case begins that would go beyond
`--seconds`. `--tiny` runs all of it on two layers of width 64, to try the benchmark itself.
"""

import argparse
import gc
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any, TypeVar

import inference
import torch
from measuring import LORA, Row, as_record, as_table, bars_of, caption_of, compare, conditions_of, in_turn, parse
from measuring import write_json as write
from memory import peak_bytes
from rich.console import Console
from step import bars_of as bars_of_step
from step import contestants, step
from torch import nn
from transformers import LlamaForCausalLM, PreTrainedModel

from ttlora.compat import build_from_config
from ttlora.errors import one_line, out_of_memory
from ttlora.models.architectures import BUILT_IN

MODELS = {"LLaMA-2-7B": "llama2-7b", "LLaMA-3-8B": "llama3-8b"}
# rows and tokens
BATCHES = ((1, 2048), (8, 512))
FORWARD = ((1, 2048), (1, 1))
TINY: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 128,
}
TINY_BATCHES = ((1, 16), (4, 8))
OUT_OF_MEMORY, NO_TIME = "out of memory", "left out: the time is up"
OPTIONS: dict[str, Any] = {
    "--seconds": {"type": float, "default": 400.0, "help": "what all cases may take together (default: %(default)s)"},
    "--tiny": {"action": "store_true", "help": "two layers of width 64 in the place of the models"},
}

T = TypeVar("T")


def main() -> int:
    arguments = parse(__doc__, rounds=5, options=OPTIONS, device="cuda", dtype="bfloat16")
    # where torch has a default device, every call asks for it in Python, which a GPU would wait for
    torch.set_default_device(None)
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 140)
    console.print(caption_of(arguments), markup=False)
    rows: list[Row] = []
    seconds: dict[str, float] = {}
    save(arguments, rows, seconds)
    begun = last = time.perf_counter()
    for case, measure in cases(arguments):
        if time.perf_counter() - begun + max(seconds.values(), default=0.0) > arguments.seconds:
            measured, note = None, NO_TIME
        else:
            measured, note = attempt(measure)
            # what building the model took is the first case's
            seconds[case], last = time.perf_counter() - last, time.perf_counter()
        new = measured or [Row(case, "", {}, note=note)]
        rows += new
        save(arguments, rows, seconds)
        console.print(as_table(new, f"measured in {seconds.get(case, 0.0):.0f} s"))
        for line in bars_of(new):
            console.print(line, markup=False)
        # it holds the model, and the next is built before it goes
        del measure
    console.print(f"{len(seconds)} cases in {time.perf_counter() - begun:.0f} s, on {where_in_full(arguments)}")
    return int(any(row.note not in ("", OUT_OF_MEMORY, NO_TIME) for row in rows))


def save(arguments: argparse.Namespace, rows: list[Row], seconds: dict[str, float]) -> None:
    """Write what there is so far, so that a run that is cut short has lost nothing."""
    if arguments.json is not None:
        records = [as_record(row) for row in rows]
        conditions = {**conditions_of(arguments), "card": where_in_full(arguments)}
        write(arguments.json, {"benchmark": "gpu", **conditions, "seconds": seconds, "rows": records})


def cases(arguments: argparse.Namespace) -> Iterator[tuple[str, Callable[[], list[Row]]]]:
    """What is measured, the most wanted first; each is to be called before the next is asked for."""
    sizes, batches, forward = (TINY, TINY_BATCHES, TINY_BATCHES) if arguments.tiny else ({}, BATCHES, FORWARD)
    for name, architecture in MODELS.items():
        release()
        model, note = attempt(partial(build, architecture, arguments.dtype, arguments.device, **sizes))
        if model is None:
            yield name, partial(refused, name, note)
            continue
        for bits in ("16 bit", "4 bit"):
            if bits == "4 bit":
                _, note = attempt(partial(quantise, model, arguments.dtype))
                if note:
                    yield f"{name}, {bits}", partial(refused, f"{name}, {bits}", note)
                    continue
            for checkpointing in (True, False):
                for size in batches:
                    case = f"{name}, {bits}, {shown(size)}" + (", checkpointing" if checkpointing else "")
                    yield case, partial(training, case, model, size, checkpointing, arguments.rounds)
            if bits == "16 bit":
                case = f"{name}, {bits}, forward"
                yield case, partial(forward_pass, case, model, forward, arguments.rounds)
        del model


def shown(size: tuple[int, int]) -> str:
    return f"{size[0]} x {size[1]:,}"


def refused(case: str, note: str) -> list[Row]:
    return [Row(case, "", {}, note=note)]


def build(architecture: str, dtype: torch.dtype, device: str, **sizes: Any) -> LlamaForCausalLM:
    """A whole model with random weights, made where it is to lie: a CPU would take minutes for them."""
    known = BUILT_IN[architecture]
    hyperparameters = {**known.hyperparameters, "use_cache": False, "dtype": dtype, **sizes}
    with torch.device(device):
        return build_from_config(LlamaForCausalLM, replace(known, hyperparameters=hyperparameters).config())


def quantise(model: LlamaForCausalLM, dtype: torch.dtype) -> None:
    """Hold the layers' matrices in 4 bits, as `ttlora train --quantize 4bit` does; the output layer stays whole."""
    from bitsandbytes.nn import Linear4bit, Params4bit

    for parent in list(model.model.layers.modules()):
        for name, linear in list(parent.named_children()):
            if type(linear) is nn.Linear:
                layer = Linear4bit(
                    linear.in_features, linear.out_features, bias=False, compute_dtype=dtype, device="meta"
                )
                weight = Params4bit(linear.weight.data, quant_type="nf4", compress_statistics=True)
                layer.weight = weight.to(linear.weight.device)
                setattr(parent, name, layer)
    # by which PEFT's LoRA knows it
    model.is_loaded_in_4bit = True


def training(case: str, model: PreTrainedModel, size: tuple[int, int], checkpointing: bool, rounds: int) -> list[Row]:
    """A training step of each contestant: its peak memory, and then its time, in turn."""
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    else:
        model.gradient_checkpointing_disable()
    ids = torch.randint(model.config.vocab_size, size, device=model.device)
    weights = allocated(model)
    steps, peaks, notes = {}, {}, {}
    models: dict[str, Any] = contestants(model)
    for name, contestant in models.items():
        run = step(contestant, {"input_ids": ids, "labels": ids})
        peak, notes[name] = attempt(partial(peak_of_step, contestant, run))
        if peak is None:
            contestant.zero_grad()
        else:
            steps[name], peaks[name] = run, peak
    # the steps that told of memory have warmed up
    seconds, note = attempt(partial(in_turn, steps, rounds, warm_up=1, case=case))
    times = compare(seconds, frozen="frozen" if "frozen" in seconds else None) if seconds else {}
    rows = []
    for name, contestant in models.items():
        figures = times.get(name, {})
        if name in peaks:
            learned = sum(parameter.nbytes for parameter in contestant.parameters() if parameter.requires_grad)
            figures |= {"bytes": peaks[name], "peak": weights + learned + peaks[name]}
            if LORA in peaks:
                figures["bytes_to_lora"] = peaks[name] / peaks[LORA]
        rows.append(Row(case, name, figures, bars_of_step(name, figures), notes[name] or note))
    return rows


def forward_pass(case: str, model: PreTrainedModel, sizes: tuple[tuple[int, int], ...], rounds: int) -> list[Row]:
    """A forward pass of the base and of what is adapted; one that is merged has weights of its own."""
    models = inference.contestants(model)
    of_sizes = [torch.randint(model.config.vocab_size, size, device=model.device) for size in sizes]
    return [row for ids in of_sizes for row in inference.measure(case, models, ids, rounds)]


def peak_of_step(model: nn.Module, run: Callable[[], object]) -> int:
    """The most that the second step holds at once, in bytes, apart from the model's parameters and buffers."""
    device = next(model.parameters()).device
    if device.type != "cuda":
        return peak_bytes(model, run)
    run()
    gc.collect()
    torch.cuda.synchronize(device)
    held = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    run()
    torch.cuda.synchronize(device)
    # AdamW's two moments were there before
    moments = 2 * sum(parameter.nbytes for parameter in model.parameters() if parameter.requires_grad)
    return torch.cuda.max_memory_allocated(device) - held + moments


def allocated(model: PreTrainedModel) -> int:
    """What the model alone takes, in bytes, while nothing else is there."""
    release()
    if model.device.type != "cuda":
        return int(model.get_memory_footprint())
    return torch.cuda.memory_allocated(model.device)


def attempt(run: Callable[[], T]) -> tuple[T | None, str]:
    """What a function gives, or None and why it has failed: one case takes no other with it."""
    try:
        return run(), ""
    except Exception as error:
        note = OUT_OF_MEMORY if out_of_memory(error) else f"{type(error).__name__}: {one_line(error)[:200]}"
    # outside of the handler, which would hold what the failed function has made
    release()
    return None, note


def release() -> None:
    """Give memory back that nobody holds any more."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def where_in_full(arguments: argparse.Namespace) -> str:
    if arguments.device == "cpu":
        return "a CPU"
    card = torch.cuda.get_device_properties(torch.device(arguments.device))
    return f"one {card.name} with {card.total_memory / 2**30:.0f} GiB"


if __name__ == "__main__":
    sys.exit(main())
