"""Turning a TT-LoRA adapter of LLaMA2-7B into plain LoRA.

    python benchmarks/export.py [--rounds 15] [--json export.json]

What `ttlora export` does, from folder to folder: read the adapter of 64 query and value matrices, check it, compute its
factors and write them. PEFT's `convert_to_lora` takes the singular value decomposition of each dense update instead; it
converts one of the matrices, once, since that takes half a minute. Bars: the export takes at most 2 s, and on one layer
of LLaMA2-7B's width with random weights the LoRA's logits differ from the adapter's by at most 1e-5 of the largest, in
float32 (computed so whatever `--dtype` says).
"""

import shutil
import tempfile
from pathlib import Path

import torch
from contestants import QUERY_AND_VALUE, adapted, llama, llama2_7b_layers
from measuring import Bar, Row, compare, in_turn, parse, publish
from peft import PeftModel, convert_to_lora
from transformers import PreTrainedModel

from ttlora import TTLoraConfig
from ttlora.adapters.export import to_lora
from ttlora.adapters.read import read_adapter
from ttlora.adapters.write import write_adapter

EXPORT, CONVERT = "ttlora export", "PEFT's convert_to_lora"


def main() -> None:
    arguments = parse(__doc__)
    rows = [measure(llama2_7b_layers(32, arguments.dtype, intermediate_size=8), arguments.rounds)]
    rows += [convert(llama2_7b_layers(1, arguments.dtype, intermediate_size=8))]
    wide = {"hidden_size": 4096, "num_attention_heads": 32, "num_key_value_heads": 32}
    rows += [reproduce(llama(torch.float32, **wide, num_hidden_layers=1, vocab_size=64))]
    publish(arguments, "export", rows)


def measure(model: PreTrainedModel, rounds: int) -> Row:
    with tempfile.TemporaryDirectory() as directory:
        folder, output = Path(directory, "tt-lora"), Path(directory, "lora")
        adapted(model, random_update(), autocast_adapter_dtype=False).save_pretrained(folder)
        seconds = in_turn(
            {EXPORT: lambda _: export(folder, output)},
            rounds,
            # an export overwrites nothing
            prepare=lambda: shutil.rmtree(output, ignore_errors=True),
            case="export",
        )
    figures = compare(seconds, frozen=None)[EXPORT]
    matrices = 2 * model.config.num_hidden_layers
    figures["seconds_a_matrix"] = figures["seconds"] / matrices
    return Row(f"{matrices} matrices", EXPORT, figures, (Bar("s for the adapter", 2.0, figures["seconds"]),))


def convert(one_layer: PreTrainedModel) -> Row:
    model = adapted(one_layer, random_update(target_modules=["q_proj"]))
    (seconds,) = in_turn({CONVERT: lambda: convert_to_lora(model, rank=5)}, rounds=1, warm_up=0)[CONVERT]
    return Row("1 matrix, once", CONVERT, {"seconds": seconds, "seconds_a_matrix": seconds})


def reproduce(model: PreTrainedModel) -> Row:
    ids = torch.arange(32)[None]
    with tempfile.TemporaryDirectory() as directory, torch.no_grad():
        folder, output = Path(directory, "tt-lora"), Path(directory, "lora")
        tt_lora = adapted(model, random_update()).eval()
        tt_lora.save_pretrained(folder)
        export(folder, output)
        expected = tt_lora(input_ids=ids).logits
        logits = PeftModel.from_pretrained(model, output).eval()(input_ids=ids).logits
    apart = ((logits - expected).abs().max() / expected.abs().max()).item()
    bar = Bar("of the largest logit between the two", 1e-5, apart)
    return Row("logits of one layer", EXPORT, {"logits_apart": apart}, (bar,))


def random_update(target_modules: str | list[str] = QUERY_AND_VALUE) -> TTLoraConfig:
    return TTLoraConfig(r=5, alpha=4.0, target_modules=target_modules, init_weights=False)


def export(folder: Path, output: Path) -> None:
    lora = to_lora(read_adapter(folder))
    write_adapter(output, lora.config, lora.tensors)


if __name__ == "__main__":
    main()
