"""Read an adapter folder of PEFT, whoever wrote it: nothing is loaded before everything fits together."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from peft.mapping import PEFT_TYPE_TO_PREFIX_MAPPING
from safetensors import safe_open
from torch import Tensor

from ttlora.adapters.config import read_config
from ttlora.adapters.fit import check_tensors
from ttlora.adapters.header import TensorInfo, read_header
from ttlora.errors import UserError, one_line, printable
from ttlora.tuners.tt_lora import TTLoraConfig

CONFIG_NAME = "adapter_config.json"
WEIGHTS_NAME = "adapter_model.safetensors"
MODEL_PREFIX = "base_model.model."

Modules = dict[str, dict[str, TensorInfo]]


@dataclass(frozen=True)
class Adapter:
    """An adapter folder that has been checked. Tensors stay on the disk until they are asked for.

    Attributes:
        folder: Where `adapter_config.json` is.
        config: The config, of the class of its method.
        modules: Name in the base model of each adapted module, to its tensors by their key in the file. Tensors of no
            module, such as learned prompts, stand under "".
        others: What else was trained and saved, such as a task's head, by key.
    """

    folder: Path
    config: Any
    modules: Mapping[str, Mapping[str, TensorInfo]]
    others: Mapping[str, TensorInfo]

    @property
    def weights_file(self) -> Path:
        """The file with the tensors."""
        return self.folder / WEIGHTS_NAME

    @cached_property
    def _content(self) -> Any:
        # opened once: every time, the names of all tensors are read
        return safe_open(self.weights_file, framework="pt")

    def load(self, key: str) -> Tensor:
        """One tensor, on the CPU, as it was saved."""
        tensor: Tensor = self._content.get_tensor(key)
        return tensor

    def entries(self, module: str) -> Tensor:
        """What the update of a module of a TT-LoRA adapter is a function of: its cores, and their start if it has one.

        Args:
            module: The module's name.
        """
        # in the order of their names: ttlora_cores, ttlora_start
        return torch.cat([self.load(key) for key in self.modules[module]])


def read_adapter(path: str | Path) -> Adapter:
    """Check an adapter folder, and read all of it but the tensors' values.

    Args:
        path: A folder that PEFT saved an adapter to, or the output folder of `ttlora train`.

    Raises:
        UserError: There is no adapter, a file is damaged, or the tensors are not those that the config describes.
    """
    try:
        folder = find_folder(path)
        config = read_config(folder / CONFIG_NAME)
        file = folder / WEIGHTS_NAME
        infos = read_header(file)
    except OSError as error:
        raise UserError(f"{error.filename or path} cannot be read: {error.strerror}") from None
    modules, others = _by_module(file, config, infos)
    if not modules:
        raise UserError(
            f"{file} holds no tensor of {config.peft_type.value}, the method that {CONFIG_NAME} names: the two files "
            "belong to different adapters"
        )
    try:
        check_tensors(config, {name: _by_part(name, tensors) for name, tensors in modules.items()})
    except ValueError as error:
        raise UserError(f"{folder} is damaged: {one_line(error)}") from error
    return Adapter(folder, config, modules, others)


def _by_part(module: str, tensors: Mapping[str, TensorInfo]) -> dict[str, TensorInfo]:
    return {key.removeprefix(MODEL_PREFIX).removeprefix(f"{module}."): info for key, info in tensors.items()}


def require_tt_lora(adapter: Adapter, command: str) -> TTLoraConfig:
    """The config of a TT-LoRA adapter.

    Args:
        adapter: A checked adapter folder.
        command: What was asked for, for the message.

    Raises:
        UserError: The adapter is of another method.
    """
    if not isinstance(adapter.config, TTLoraConfig):
        method = adapter.config.peft_type.value
        hint = "; ttlora import makes one of a LoRA adapter" if method == "LORA" else ""
        raise UserError(
            f"{adapter.folder} is an adapter of {method}, and ttlora {command} takes those of TT-LoRA{hint}"
        )
    return adapter.config


def find_folder(path: str | Path) -> Path:
    """The folder with the two files of an adapter.

    Args:
        path: That folder, or the output folder of `ttlora train`.

    Raises:
        UserError: It holds no adapter.
    """
    path = Path(os.path.expanduser(path))
    for folder in (path, path / "adapter"):
        if (folder / CONFIG_NAME).is_file():
            return folder
    if not path.exists():
        raise UserError(f"{path} is not there")
    if not path.is_dir():
        raise UserError(f"'{path}' is a file; name the adapter's folder, the one with {CONFIG_NAME}")
    inner = sorted(folder.parent.name for folder in path.glob(f"*/{CONFIG_NAME}"))
    hint = f"; there is one in its folder '{inner[0]}'" if inner else ""
    raise UserError(f"'{path}' holds no {CONFIG_NAME}, so it is no adapter of PEFT{hint}")


def _by_module(file: Path, config: Any, infos: Mapping[str, TensorInfo]) -> tuple[Modules, dict[str, TensorInfo]]:
    """The adapter's tensors by module, and all others.

    Raises:
        UserError: A name stands for no module, or two for the same tensor.
    """
    prefix = "." + PEFT_TYPE_TO_PREFIX_MAPPING[config.peft_type]
    modules: Modules = {}
    others: dict[str, TensorInfo] = {}
    names: set[str] = set()
    for key, info in sorted(infos.items(), key=lambda item: _with_numbers(item[0])):
        name = key.removeprefix(MODEL_PREFIX)
        if name in names:
            raise UserError(f"{file} holds '{printable(name)}' twice, with and without {MODEL_PREFIX}")
        names.add(name)
        if 0 in info.shape:
            raise UserError(
                f"{file}: '{printable(key)}' has no entries (sizes {list(info.shape)}): where several processes share "
                "the weights, as DeepSpeed's ZeRO-3 does, they have to be gathered before they are saved"
            )
        if config.is_prompt_learning and "." not in key:
            modules.setdefault("", {})[key] = info
            continue
        module, found, _ = f".{name}".partition(prefix)
        if found and not module:
            raise UserError(f"{file}: '{printable(key)}' names no module of a model")
        if found:
            modules.setdefault(module[1:], {})[key] = info
        else:
            others[key] = info
    return modules, others


def _with_numbers(key: str) -> list[tuple[int, str]]:
    """For sorting: layer 2 comes before layer 10."""
    return [(int(part), "") if part.isdecimal() and len(part) < 10 else (0, part) for part in key.split(".")]
