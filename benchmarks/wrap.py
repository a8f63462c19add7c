"""Wrapping a model: what `get_peft_model` takes.

    python benchmarks/wrap.py [--rounds 15] [--json wrap.json]

LLaMA2-7B's shape on the meta device, without weights, and 4 of its layers with weights; query and value are adapted.
Bars: TT-LoRA takes at most 2 s on the meta device, and at most 50 ms a layer with weights.
"""

from collections.abc import Callable
from typing import Any

from contestants import TT, adapter_configs, llama2_7b_layers, sharing_weights, wrapped
from measuring import Bar, Row, compare, in_turn, parse, publish
from peft import PeftConfig
from transformers import PreTrainedModel

from ttlora.models.skeleton import build_skeleton

LAYERS = 4


def main() -> None:
    arguments = parse(__doc__)
    on_meta = build_skeleton("llama2-7b").to(arguments.dtype)
    in_memory = llama2_7b_layers(LAYERS, arguments.dtype)
    rows = measure("LLaMA2-7B on the meta device", on_meta, arguments.rounds)
    rows += measure(f"{LAYERS} layers of it with weights", in_memory, arguments.rounds)
    publish(arguments, "wrap", rows)


def measure(case: str, model: PreTrainedModel, rounds: int) -> list[Row]:
    contestants = {name: wrap(config) for name, config in adapter_configs().items()}
    seconds = in_turn(contestants, rounds, prepare=lambda: sharing_weights(model), case=case)
    rows = []
    for name, figures in compare(seconds, frozen=None).items():
        figures["seconds_a_layer"] = figures["seconds"] / model.config.num_hidden_layers
        on_meta = Bar("s for the model", 2.0, figures["seconds"])
        in_memory = Bar("s a layer", 0.05, figures["seconds_a_layer"])
        bars = (on_meta if model.device.type == "meta" else in_memory,) if name == TT else ()
        rows.append(Row(case, name, figures, bars))
    return rows


def wrap(config: PeftConfig) -> Callable[[Any], object]:
    return lambda model: wrapped(model, config)


if __name__ == "__main__":
    main()
