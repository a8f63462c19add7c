"""Turning a TT-LoRA adapter into plain LoRA.

    python benchmarks/export.py [--json export.json]

PEFT's `convert_to_lora` takes the singular value decomposition of each dense update. It converts one of the 64 query
and value matrices of a LLaMA2-7B adapter here, once, since that takes half a minute.
"""

from contestants import adapted, llama2_7b_layers
from measuring import Row, in_turn, parse, publish
from peft import convert_to_lora
from transformers import PreTrainedModel

from ttlora import TTLoraConfig


def main() -> None:
    arguments = parse(__doc__, rounds=None)
    publish(arguments, "export", [convert(llama2_7b_layers(1, arguments.dtype, intermediate_size=8))])


def convert(one_layer: PreTrainedModel) -> Row:
    model = adapted(one_layer, TTLoraConfig(target_modules=["q_proj"], init_weights=False))
    name = "PEFT's convert_to_lora"
    (seconds,) = in_turn({name: lambda: convert_to_lora(model, rank=5)}, rounds=1, warm_up=0)[name]
    return Row("one matrix", name, {"seconds": seconds, "seconds_a_matrix": seconds})


if __name__ == "__main__":
    main()
