"""Write an adapter folder: whole or not at all, and over nothing."""

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from peft import PeftConfig
from safetensors.torch import save_file
from torch import Tensor

from ttlora.adapters.read import CONFIG_NAME, MODEL_PREFIX, WEIGHTS_NAME
from ttlora.errors import UserError


def require_free(output: str | Path) -> Path:
    """The path of an output folder that is not there yet, or is empty.

    Raises:
        UserError: It holds something, or is a file.
    """
    path = Path(output).expanduser()
    if path.is_dir():
        if content := sorted(item.name for item in path.iterdir()):
            raise UserError(f"output folder {path} holds other files ({content[0]}): name another folder")
    elif path.exists():
        raise UserError(f"output {path} is a file: name a folder that is empty or not there yet")
    return path


@contextmanager
def new_folder(output: str | Path) -> Iterator[Path]:
    """A temporary folder beside ``output`` that takes its place when the block has ended well, and goes if it has not.

    Raises:
        UserError: ``output`` holds something, or it cannot be made.
    """
    path = require_free(output)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.mkdir(parents=True)
    except OSError as error:
        raise UserError(f"output folder {path} cannot be made: {error.strerror}") from None
    try:
        yield temporary
        temporary.rename(require_free(path))
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def write_adapter(output: str | Path, config: PeftConfig, tensors: Mapping[str, Tensor]) -> None:
    """Write a folder that PEFT loads.

    Args:
        output: A folder that is empty or not there yet.
        config: The adapter's config.
        tensors: Its tensors by their key in the file.

    Raises:
        UserError: ``output`` holds something, or a tensor has entries that are not finite.
    """
    for key, tensor in tensors.items():
        if not torch.isfinite(tensor).all():
            name = key.removeprefix(MODEL_PREFIX)
            raise UserError(
                f"'{name}' has entries that are not finite in {str(tensor.dtype).removeprefix('torch.')}: "
                "the training diverged, the file is damaged, or the number format is too narrow"
            )
    with new_folder(output) as folder:
        save_file(
            {key: tensor.contiguous() for key, tensor in tensors.items()}, folder / WEIGHTS_NAME, {"format": "pt"}
        )
        # sets in the order of their names, so that the same adapter gives the same file
        content = json.dumps(config.to_dict(), indent=2, sort_keys=True, default=sorted)
        (folder / CONFIG_NAME).write_text(content + "\n", "utf-8")
