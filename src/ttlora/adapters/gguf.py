"""A plain LoRA adapter as a file of llama.cpp, which its own converter writes.

GGUF names tensors as llama.cpp does and holds Llama's query and key in another order of rows; the converter knows that
of every architecture, and is not installed with anything: it is a script in llama.cpp's source.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from peft import LoraConfig
from torch import Tensor
from transformers.pytorch_utils import Conv1D

from ttlora.adapters.read import MODEL_PREFIX
from ttlora.adapters.write import write_adapter
from ttlora.errors import RunError, UserError, printable
from ttlora.models.skeleton import build_skeleton
from ttlora.whole_files import HALF_WRITTEN, require_writable, writing

CONVERTER = "convert_lora_to_gguf.py"
# names a folder with llama.cpp's source
LLAMA_CPP = "LLAMA_CPP"
READ = "import sys; sys.path.insert(0, sys.argv[1]); from gguf import GGUFReader; GGUFReader(sys.argv[2])"
OUTTYPES = {torch.float32: "f32", torch.bfloat16: "bf16", torch.float16: "f16"}


def require_new_file(output: str | Path) -> Path:
    """The path of a GGUF file that is not there yet, and can be made.

    Raises:
        UserError: It is there, or cannot be made, or is not called so.
    """
    path = require_writable(output)
    if path.suffix != ".gguf":
        raise UserError(f"output {path} is to be one file: give it a name that ends in .gguf")
    if path.exists():
        raise UserError(f"output {path} is there already: name another file")
    return path


def find_converter() -> Path:
    """llama.cpp's converter for adapters: in the folder that ``LLAMA_CPP`` names, or else on the ``PATH``.

    Raises:
        UserError: It is not there.
    """
    if source := os.environ.get(LLAMA_CPP):
        script = Path(os.path.expanduser(source)) / CONVERTER
        if not script.is_file():
            raise UserError(f"{LLAMA_CPP} names {source}, which holds no {CONVERTER}: name a folder with its source")
        return script
    if found := shutil.which(CONVERTER):
        return Path(found)
    raise UserError(
        f"llama.cpp's {CONVERTER} is nowhere on the PATH: get llama.cpp's source, and name its folder in the variable "
        f"{LLAMA_CPP}"
    )


def write_gguf(output: str | Path, base: str | Path, config: LoraConfig, tensors: Mapping[str, Tensor]) -> None:
    """Write a GGUF file that llama.cpp adds to its base model; it appears whole or not at all.

    Args:
        output: The file, not there yet.
        base: Folder of the base model, of which ``config.json`` is read.
        config: The config of the LoRA adapter.
        tensors: ``A`` (r x in) and ``B`` (out x r) of each module, by their key in the file of the LoRA adapter; the
            GGUF file has their number format.

    Raises:
        UserError: The output is there, or no converter, or no such base model, or the adapter is of another one, or has
            entries that are not finite.
        RunError: The converter failed, or the file cannot be written.
    """
    path, converter = require_new_file(output), find_converter()
    folder = Path(os.path.expanduser(base)).absolute()
    _require_fit(folder, tensors)
    begin, end = HALF_WRITTEN
    home = next(parent for parent in path.absolute().parents if parent.is_dir())
    with writing(path, home), TemporaryDirectory(prefix=begin, suffix=end, dir=home) as temporary:
        # the converter calls the adapter as its folder is called
        lora, file = Path(temporary) / "lora" / path.stem, Path(temporary) / "adapter.gguf"
        try:
            write_adapter(lora, config, tensors)
        except RunError as error:
            raise RunError(str(error).replace(str(lora), str(path))) from error
        outtype = OUTTYPES[next(iter(tensors.values())).dtype]
        flags = ("--base", folder, "--outfile", file, "--outtype", outtype)
        _run(f"llama.cpp's converter {converter} failed", converter, *flags, lora)
        # of a full disk the converter says nothing, where tensors are small
        _run("llama.cpp's converter left a file that it cannot read", "-c", READ, converter.with_name("gguf-py"), file)
        require_new_file(output)
        path.parent.mkdir(parents=True, exist_ok=True)
        file.rename(path)


def _require_fit(base: Path, tensors: Mapping[str, Tensor]) -> None:
    """Refuse a base model that is not the adapter's: the converter would not notice."""
    if not base.is_dir():
        raise UserError(f"`base` {base} is no folder: name the one with the base model's config.json")
    layers = dict(build_skeleton(str(base)).named_modules())
    for key in (key for key in tensors if key.endswith(".lora_B.weight")):
        name = key.removeprefix(MODEL_PREFIX).removesuffix(".lora_B.weight")
        sizes = [len(tensors[key]), tensors[f"{MODEL_PREFIX}{name}.lora_A.weight"].shape[1]]
        layer = layers.get(name)
        if isinstance(layer, Conv1D):
            raise UserError(
                f"'{name}' of {base} keeps its weight transposed, of which llama.cpp's converter makes a wrong update; "
                "ttlora merge writes the whole model with it"
            )
        found = None if layer is None else list(layer.weight.shape)
        if found != sizes:
            there = f"no '{name}'" if found is None else f"a '{name}' of {' x '.join(map(str, found))}"
            raise UserError(
                f"the adapter updates '{name}' of {' x '.join(map(str, sizes))}, and the model in {base} has {there}: "
                "`base` has to be the model that it was trained on"
            )


def _run(failed: str, *arguments: str | Path) -> None:
    done = subprocess.run(
        [sys.executable, *arguments],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        encoding="utf-8",
        errors="replace",
        # a bar would be the last line
        env=os.environ | {"TQDM_DISABLE": "1"},
    )
    if done.returncode:
        lines = [line for line in map(printable, done.stderr.splitlines()) if line]
        raise RunError(f"{failed}: {lines[-1] if lines else f'it ended with status {done.returncode}'}")
