"""Read an adapter folder of PEFT, whoever wrote it: nothing is loaded before everything fits together."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peft import PeftConfig
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_PREFIX_MAPPING
from safetensors import safe_open
from torch import Tensor

from ttlora.adapters.header import TensorInfo, read_header
from ttlora.errors import UserError, one_line
from ttlora.tuners.tt_lora import TTLoraConfig, saved_update

CONFIG_NAME = "adapter_config.json"
WEIGHTS_NAME = "adapter_model.safetensors"
MODEL_PREFIX = "base_model.model."
FLOATING = ("F64", "F32", "F16", "BF16")

# Far above any real config, and little enough to look at without harm.
LARGEST_CONFIG = 2**24


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

    def load(self, key: str) -> Tensor:
        """One tensor, on the CPU, as it was saved."""
        with safe_open(self.weights_file, framework="pt") as file:
            tensor: Tensor = file.get_tensor(key)
            return tensor


def read_adapter(path: str | Path) -> Adapter:
    """Check an adapter folder, and read all of it but the tensors' values.

    Args:
        path: A folder that PEFT saved an adapter to, or the output folder of `ttlora train`.

    Raises:
        UserError: There is no adapter, a file is damaged, or the tensors are not those that the config describes.
    """
    folder = _find_folder(Path(path).expanduser())
    config = _read_config(folder / CONFIG_NAME)
    infos = read_header(folder / WEIGHTS_NAME)
    prefix = "." + PEFT_TYPE_TO_PREFIX_MAPPING[config.peft_type]
    modules: dict[str, dict[str, TensorInfo]] = {}
    others: dict[str, TensorInfo] = {}
    for key, info in sorted(infos.items(), key=lambda item: _with_numbers(item[0])):
        if prefix in key:
            modules.setdefault(key.removeprefix(MODEL_PREFIX).partition(prefix)[0], {})[key] = info
        elif config.is_prompt_learning and "." not in key:
            modules.setdefault("", {})[key] = info
        else:
            others[key] = info
    if not modules:
        raise UserError(
            f"{folder / WEIGHTS_NAME} holds no tensor of {config.peft_type.value}, the method that {CONFIG_NAME} "
            "names: the two files belong to different adapters"
        )
    if isinstance(config, TTLoraConfig):
        for module, tensors in modules.items():
            for key, info in tensors.items():
                _check_cores(folder / WEIGHTS_NAME, config, module, key, info)
    return Adapter(folder, config, modules, others)


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


def _find_folder(path: Path) -> Path:
    for folder in (path, path / "adapter"):
        if (folder / CONFIG_NAME).is_file():
            return folder
    if not path.exists():
        raise UserError(f"there is no folder '{path}'")
    if not path.is_dir():
        raise UserError(f"'{path}' is a file; name the adapter's folder, the one with {CONFIG_NAME}")
    inner = sorted(folder.parent.name for folder in path.glob(f"*/{CONFIG_NAME}"))
    hint = f"; there is one in its folder '{inner[0]}'" if inner else ""
    raise UserError(f"'{path}' holds no {CONFIG_NAME}, so it is no adapter of PEFT{hint}")


def _read_config(file: Path) -> Any:
    if file.stat().st_size > LARGEST_CONFIG:
        raise UserError(f"{file} has {file.stat().st_size:,} bytes, too many for the config of an adapter")
    try:
        values = json.loads(file.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{file} is damaged: {one_line(error)}") from error
    method = values.get("peft_type") if isinstance(values, dict) else None
    if method not in list(PEFT_TYPE_TO_CONFIG_MAPPING):
        raise UserError(f"{file} names the method {method!r}, which neither ttlora nor this version of PEFT knows")
    try:
        config = PeftConfig.from_peft_type(**values)  # type: ignore[no-untyped-call]
        base = config.base_model_name_or_path
        if base is not None and not (isinstance(base, str) and base.isprintable()):
            raise ValueError(f"base_model_name_or_path={base!r} is no name of a model")
        return config
    except Exception as error:  # values of a wrong type make configs stumble in any way
        raise UserError(f"{file} is no config of {method}: {one_line(error)}") from error


def _check_cores(file: Path, config: TTLoraConfig, module: str, key: str, info: TensorInfo) -> None:
    if len(info.shape) != 1 or info.dtype not in FLOATING:
        raise UserError(f"{file}: '{key}' is no vector of cores but {info.dtype} of sizes {list(info.shape)}")
    try:
        shape = saved_update(config, module).shape
    except ValueError as error:
        raise UserError(f"{file.with_name(CONFIG_NAME)}: {one_line(error)}") from error
    if info.shape != (shape.parameters,):
        raise UserError(
            f"{file}: the cores of '{module}' have {info.parameters:,} entries, but shape {list(shape.dims)} of ranks "
            f"{list(shape.ranks)} in {CONFIG_NAME} has {shape.parameters:,}: the two files belong to different adapters"
        )


def _with_numbers(key: str) -> list[tuple[int, str]]:
    """For sorting: layer 2 comes before layer 10."""
    return [(int(part), "") if part.isdecimal() and len(part) < 10 else (0, part) for part in key.split(".")]
