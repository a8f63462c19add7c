"""Many adapters of one model: loaded from their folders, swapped while the model serves, and mixed in a batch."""

import copy
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel, get_peft_model
from safetensors.torch import load_file
from torch import Tensor, nn

from ttlora.adapters.read import MODEL_PREFIX, read_adapter, require_tt_lora
from ttlora.adapters.weights import require_fit
from ttlora.compat import renamed_for_transformers
from ttlora.errors import UserError, one_line
from ttlora.tuners.tt_lora import PooledAdapters, TTLoraConfig, TTLoraLayer
from ttlora.values import short_repr

# the fields of a config that say which layers have cores, and what these mean
RECIPE = (
    *("target_modules", "target_parameters", "exclude_modules", "layers_to_transform", "layers_pattern"),
    *("shape", "shape_pattern", "r", "rank_pattern", "alpha", "alpha_pattern", "scaling", "core_size"),
    *("weight_sizes", "weight_kinds"),
)


def load_many(model: nn.Module, folders: Mapping[str, str | Path] | Iterable[str | Path]) -> "AdapterPool":
    """Load many TT-LoRA adapters into one model, where each takes the memory of its cores and no more.

    Args:
        model: The base model, which is adapted where it is: `AdapterPool.model` is what to call.
        folders: Name to adapter folder; or folders, each of which is named as its adapter is to be.

    Raises:
        UserError: A folder is damaged or does not fit the model, a name is taken, or an adapter was trained with more
            than its cores, such as a head. The model is as it was then.

    Examples:
        >>> import torch, ttlora
        >>> from transformers import AutoModel
        >>> pool = ttlora.load_many(AutoModel.from_pretrained("model"), {"stars": "adapter", "mail": "adapter"})
        >>> ids = torch.tensor([[2, 9, 4, 3], [2, 7, 5, 3], [2, 9, 4, 3]])
        >>> pool.model(input_ids=ids, adapter_names=["stars", "__base__", "mail"]).last_hidden_state.shape
        torch.Size([3, 4, 32])
        >>> pool.set_adapter("mail")  # for all rows of batches that name no adapters
        >>> pool.hotswap_adapter("adapter", "stars")
    """
    if isinstance(folders, Mapping):
        named = list(folders.items())
    else:
        named = [(Path(folder).name, folder) for folder in folders]
    if not named:
        raise UserError("`folders` names no adapter")
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    pool = AdapterPool(model, len(named))
    try:
        for name, folder in named:
            pool.load_adapter(folder, name)
    except BaseException:
        if isinstance(pool.model, PeftModel):
            pool.model.unload()
        for parameter in trainable:
            parameter.requires_grad_(True)
        raise
    for adapters in pool.model.base_model.pooled:
        adapters.resize(len(adapters))
    return pool


class AdapterPool:
    """The adapters of a model that `load_many` has loaded, and those that join them later.

    Those of one recipe (the same layers, shapes and scales) are one tensor, an adapter a row, in the widest number
    format of their files, next to the model. Batches mix recipes too, but rows of one go through the model's layers
    together. The names are the pool's: PEFT's `adapter_names` takes them beside "__base__", and nothing else of PEFT
    knows them. Between two calls of the model adapters may come, go and be replaced; who calls it in several threads
    keeps them apart.

    Attributes:
        model: The adapted model, as PEFT has it. Without `adapter_names` it does what the base model does until
            `set_adapter` says otherwise.
        active_adapter: The adapter that acts where a batch names none.
    """

    def __init__(self, model: nn.Module, capacity: int = 1) -> None:
        if isinstance(model, PeftModel):
            raise UserError("`model` has adapters of PEFT's already: give the base model")
        self.model: Any = model
        self.active_adapter: str | None = None
        self._capacity = capacity
        self._recipes: dict[str, PooledAdapters] = {}

    @property
    def adapter_names(self) -> list[str]:
        """The names of all adapters."""
        return [name for adapters in self._recipes.values() for name in adapters.names]

    def load_adapter(self, folder: str | Path, adapter_name: str) -> None:
        """Add an adapter: all of it or, where it is refused, nothing.

        Args:
            folder: A folder that PEFT saved an adapter to, or the output folder of `ttlora train`.
            adapter_name: What it is to be called.

        Raises:
            UserError: As `load_many`.
        """
        if adapter_name == "__base__" or adapter_name in getattr(self.model, "peft_config", ()):
            raise UserError(f"`adapter_name` is {short_repr(adapter_name)}, which means something else: choose another")
        if self._home(adapter_name) is not None:
            raise UserError(
                f"there is an adapter {short_repr(adapter_name)} already: choose another name for {folder}, or let "
                "`hotswap_adapter` replace it"
            )
        adapters, cores = self._read(folder)
        adapters.put(adapter_name, cores)

    def hotswap_adapter(self, folder: str | Path, adapter_name: str) -> None:
        """Put the adapter of a folder in the place of one that is there, which stays where the folder is refused.

        Args:
            folder: As for `load_adapter`.
            adapter_name: The adapter to be replaced, whose recipe may be another.

        Raises:
            UserError: There is no adapter of that name, or as `load_many`.
        """
        before = self._require(adapter_name)
        adapters, cores = self._read(folder)
        adapters.put(adapter_name, cores)
        if adapters is not before:
            before.remove(adapter_name)
        if self.active_adapter == adapter_name:
            self.set_adapter(adapter_name)

    def set_adapter(self, adapter_name: str) -> None:
        """Let an adapter act on all rows of the batches that name none: its cores are copied to each layer.

        Args:
            adapter_name: The adapter.

        Raises:
            UserError: There is no adapter of that name.
        """
        adapters = self._require(adapter_name)
        adapters.copy_to_slot(adapter_name)
        if self.model.active_adapter != adapters.slot:
            self.model.set_adapter(adapters.slot, inference_mode=True)
        self.active_adapter = adapter_name

    def delete_adapter(self, adapter_name: str) -> None:
        """Forget an adapter; if it is the active one, none is.

        Args:
            adapter_name: The adapter.

        Raises:
            UserError: There is no adapter of that name.
        """
        adapters = self._require(adapter_name)
        adapters.remove(adapter_name)
        if self.active_adapter == adapter_name:
            adapters.copy_to_slot(None)
            self.active_adapter = None

    def _home(self, adapter_name: str) -> PooledAdapters | None:
        return next((adapters for adapters in self._recipes.values() if adapter_name in adapters), None)

    def _require(self, adapter_name: str) -> PooledAdapters:
        adapters = self._home(adapter_name)
        if adapters is None:
            raise UserError(f"there is no adapter {short_repr(adapter_name)} in the pool")
        return adapters

    def _read(self, folder: str | Path) -> tuple[PooledAdapters, dict[str, Tensor]]:
        """The adapters that one is to join, and its cores by their names in the file."""
        adapter = read_adapter(folder)
        config = require_tt_lora(adapter, "load_many")
        if config.init_weights == "dota":
            raise UserError(
                f"{adapter.folder} was trained with init_weights='dota', and a pool takes plain trains: `ttlora round "
                "--tolerance 1e-6` makes one of it"
            )
        if adapter.others:
            raise UserError(
                f"{adapter.folder} holds {min(adapter.others).removeprefix(MODEL_PREFIX)} beside its cores, and a pool "
                "takes cores alone: load it with PEFT"
            )
        fields = {field: getattr(config, field) for field in RECIPE}
        recipe = json.dumps([sorted(adapter.modules), fields], default=sorted)
        refusal = f"{adapter.folder} does not fit {getattr(self.model, 'name_or_path', '') or 'the model'}"
        is_new = recipe not in self._recipes
        # float8 is promoted with nothing; bfloat16 holds all that it does
        cores = {
            name: tensor if tensor.dtype.itemsize > 1 else tensor.bfloat16()
            for name, tensor in load_file(adapter.weights_file).items()
        }
        if is_new:
            self._recipes[recipe] = self._add_recipe(config, next(iter(cores.values())).dtype, refusal)
        adapters = self._recipes[recipe]
        try:
            if cores.keys() != adapters.layers.keys():
                # adapters of older versions of transformers name the modules of some models otherwise
                cores = renamed_for_transformers(self.model, config, cores)
            wanted = {name: layer.cores[adapters.slot] for name, layer in adapters.layers.items()}
            require_fit(refusal, {name: tensor.shape for name, tensor in cores.items()}, wanted)
        except BaseException:
            if is_new:
                self._drop_recipe(recipe)
            raise
        return adapters, cores

    def _add_recipe(self, config: TTLoraConfig, dtype: torch.dtype, refusal: str) -> PooledAdapters:
        slot = f"__pool_{len(self._recipes)}__"
        config = copy.copy(config)
        # its own start changes nothing
        config.inference_mode, config.init_weights = True, True
        try:
            if isinstance(self.model, PeftModel):
                self.model.add_adapter(slot, config)
            else:
                self.model = get_peft_model(self.model, config, slot)
        except Exception as error:  # of whatever kind, as PEFT and the base model's code have it
            raise UserError(f"{refusal}: {one_line(error)}") from None
        # as PEFT does with what it loads
        self.model.eval()
        tuner: Any = self.model.base_model
        layers = {
            f"{MODEL_PREFIX}{path}.ttlora_cores": module
            for path, module in tuner.model.named_modules()
            if isinstance(module, TTLoraLayer) and slot in module.cores
        }
        adapters = PooledAdapters(slot, layers, dtype, 1 if self._recipes else self._capacity)
        tuner.add_module(slot, adapters)
        return adapters

    def _drop_recipe(self, recipe: str) -> None:
        slot = self._recipes.pop(recipe).slot
        self.model.delete_adapter(slot)
        delattr(self.model.base_model, slot)
