"""A vLLM plugin that serves TT-LoRA adapters as they are: a request for a model's name finds the folder of that name.

``TTLORA_ADAPTERS`` names folders with adapters, ``TTLORA_CACHE`` where their plain LoRA form is put, and
``TTLORA_CACHE_SIZE`` how large that may become.
"""

import asyncio
import hashlib
import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vllm.lora.peft_helper import PEFTHelper
from vllm.lora.request import LoRARequest
from vllm.lora.resolver import LoRAResolver, LoRAResolverRegistry

from ttlora.adapters.config import read_config
from ttlora.adapters.read import CONFIG_NAME, find_folder
from ttlora.errors import RunError, UserError, one_line, printable
from ttlora.serving.cache import LoraCache
from ttlora.text_forms import parse_bytes

NAME = "ttlora"
CACHE_SIZE = "10GB"
# vLLM shows what is logged under its own name
logger = logging.getLogger("vllm.plugins.ttlora")


def register(environment: Mapping[str, str] = os.environ) -> None:
    """Register the resolver with vLLM, once.

    Args:
        environment: Where ``TTLORA_ADAPTERS``, ``TTLORA_CACHE`` and ``TTLORA_CACHE_SIZE`` stand.

    Raises:
        UserError: A folder is not there, or the size is none: better at the start than with each request.
    """
    if NAME in LoRAResolverRegistry.get_supported_resolvers():
        return
    folders = [Path(folder).expanduser() for folder in environment["TTLORA_ADAPTERS"].split(os.pathsep) if folder]
    for folder in folders:
        if not folder.is_dir():
            raise UserError(f"TTLORA_ADAPTERS names {folder}, which is no folder")
    size = parse_bytes("TTLORA_CACHE_SIZE", environment.get("TTLORA_CACHE_SIZE") or CACHE_SIZE)
    place = environment.get("TTLORA_CACHE") or os.path.join(environment.get("XDG_CACHE_HOME") or "~/.cache", "ttlora")
    cache = LoraCache(place, size)
    restore_before_reading(cache)
    LoRAResolverRegistry.register_resolver(NAME, TTLoraResolver(folders, cache))


def restore_before_reading(cache: LoraCache) -> None:
    """Let vLLM's workers find what the cache has dropped.

    vLLM asks a resolver for a name once, drops adapters from its own memory, and reads them again from where they were.
    This is the one place that all versions of vLLM read an adapter's config at; where it has gone, nothing is restored.
    """
    read = getattr(getattr(PEFTHelper, "from_local_dir", None), "__func__", None)
    if read is None:
        return

    def restore_and_read(cls: type, lora_path: str, *options: Any, **keywords: Any) -> Any:
        try:
            cache.restore(Path(lora_path))
        except (UserError, RunError) as error:
            # as vLLM takes an adapter that is not there
            raise FileNotFoundError(str(error)) from error
        return read(cls, lora_path, *options, **keywords)

    PEFTHelper.from_local_dir = classmethod(restore_and_read)


class TTLoraResolver(LoRAResolver):  # type: ignore[misc] # vLLM need not be installed
    """Finds the TT-LoRA adapter of a name, and hands its plain LoRA form to vLLM.

    What it cannot serve it declines with a line in the log, never with an exception: vLLM would answer with an error of
    its own.

    Args:
        folders: Where adapters are looked for, the first first.
        cache: Makes their plain LoRA form.
    """

    def __init__(self, folders: Sequence[Path], cache: LoraCache) -> None:
        self.folders, self.cache = folders, cache

    async def resolve_lora(self, base_model_name: str, lora_name: str) -> LoRARequest | None:
        """The adapter of a name, in the form that vLLM reads; None: there is none that can be served.

        Args:
            base_model_name: The model that vLLM serves.
            lora_name: The name that was asked for, which comes from outside.
        """
        try:
            return await asyncio.to_thread(self._resolve, base_model_name, lora_name)
        except (UserError, RunError) as error:
            logger.warning("ttlora does not serve %s: %s", printable(repr(lora_name), 200), error)
        except Exception as error:  # what no one has thought of must not end in an answer
            logger.warning("ttlora does not serve %s: %s", printable(repr(lora_name), 200), one_line(error))
        return None

    def _resolve(self, base_model_name: str, lora_name: str) -> LoRARequest | None:
        folder = self._find(lora_name)
        if folder is None:
            return None
        self.cache.require_bounded(folder)
        config = read_config(folder / CONFIG_NAME)
        if not _is_same_model(config.base_model_name_or_path, base_model_name):
            raise UserError(
                f"it was trained on {config.base_model_name_or_path}, and vLLM serves {base_model_name}: where both "
                f"are the same, write the latter into its {CONFIG_NAME} as base_model_name_or_path"
            )
        path = self.cache.expanded(folder)
        return LoRARequest(lora_name, _number_of(f"{lora_name}\0{path.name}"), str(path))

    def _find(self, name: str) -> Path | None:
        """The folder of an adapter, which lies within one of ours; None: nobody has such a name.

        Raises:
            UserError: The name leads out of the folders.
        """
        if not name or "\0" in name or len(name) > 255:
            raise UserError("it is no name of a folder")
        for home in self.folders:
            inside, path = home.resolve(), home / name
            if not path.is_dir():
                continue
            if inside not in path.resolve().parents:
                raise UserError(f"the name leads out of {home}")
            adapter = find_folder(path)
            for file in (adapter, *adapter.glob("*")):
                if not file.resolve().is_relative_to(inside):
                    raise UserError(f"{file.name} is a link out of {home}")
            return adapter
        return None


def _is_same_model(of_adapter: object, served: str) -> bool:
    """Whether an adapter was trained on the model that is served: by its name, or by the folder that both mean."""
    if not isinstance(of_adapter, str):
        return False
    if of_adapter == served:
        return True
    return os.path.isdir(of_adapter) and os.path.isdir(served) and os.path.samefile(of_adapter, served)


def _number_of(text: str) -> int:
    """A number above zero, the same in every process."""
    return 1 + int.from_bytes(hashlib.sha256(text.encode("utf-8", "replace")).digest()[:4], "big") % (2**31 - 1)
