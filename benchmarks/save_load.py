"""Saving an adapter and loading it: seconds, and the bytes on disk.

    python benchmarks/save_load.py [--rounds 15] [--dtype bfloat16] [--json save_load.json]

Adapters of query and value of a LLaMA2-7B, in the dtype asked for: `save_pretrained` into a folder, and
`PeftModel.from_pretrained` from it onto the bare model, which wraps it too. Bytes are those of the adapter's weights
and config. The base's other layers are small, since none of this touches them. There is no bar here.
"""

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from contestants import adapted, adapter_configs, llama2_7b_layers, sharing_weights
from measuring import LORA, Row, compare, in_turn, parse, publish
from peft import PeftModel
from transformers import PreTrainedModel


def main() -> None:
    arguments = parse(__doc__)
    model = llama2_7b_layers(32, arguments.dtype, intermediate_size=8)
    publish(arguments, "save_load", measure(model, arguments.rounds))


def measure(model: PreTrainedModel, rounds: int) -> list[Row]:
    # left in the dtype asked for: PEFT would train, and save, 16-bit adapters in 32
    models = {name: adapted(model, config, autocast_adapter_dtype=False) for name, config in adapter_configs().items()}
    with tempfile.TemporaryDirectory() as directory:
        folders = {name: Path(directory, str(number)) for number, name in enumerate(models)}
        saving = in_turn({name: save(models[name], folder) for name, folder in folders.items()}, rounds, case="save")
        sizes = {name: bytes_of(folder) for name, folder in folders.items()}
        loaders = {name: load(folder) for name, folder in folders.items()}
        loading = in_turn(loaders, rounds, prepare=lambda: sharing_weights(model), case="load")
    rows = []
    for case, seconds in {"save": saving, "load": loading}.items():
        for name, figures in compare(seconds, frozen=None).items():
            sized = {"bytes": sizes[name], "bytes_to_lora": sizes[name] / sizes[LORA]}
            rows.append(Row(case, name, {**figures, **sized}))
    return rows


def save(model: PeftModel, folder: Path) -> Callable[[], object]:
    return lambda: model.save_pretrained(folder)


def load(folder: Path) -> Callable[[Any], object]:
    def run(model: Any) -> object:
        with torch.device("cpu"):  # as in `wrapped`
            return PeftModel.from_pretrained(model, folder, autocast_adapter_dtype=False)

    return run


def bytes_of(folder: Path) -> int:
    return sum((folder / name).stat().st_size for name in ("adapter_model.safetensors", "adapter_config.json"))


if __name__ == "__main__":
    main()
