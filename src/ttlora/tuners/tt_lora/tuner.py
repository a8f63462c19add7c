"""What the tuners have in common whose layers are `TTLoraLayer`."""

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import nn

from ttlora.tuners.mixed_batch import mixed_batch
from ttlora.tuners.tt_lora.factors import BuiltFactors
from ttlora.tuners.tt_lora.layer import TTLoraLayer
from ttlora.tuners.tt_lora.pooled import PooledAdapters
from ttlora.tuners.tt_lora.together import build_together
from ttlora.tuners.tuner import Tuner


class TrainTuner(Tuner):
    """A tuner that knows its layers, and builds the factors of all of them before a forward."""

    def inject_adapter(self, model: nn.Module, adapter_name: str, *args: Any, **kwargs: Any) -> None:
        """Adapt the target modules, and write what was resolved for them into the model's copy of the config."""
        twin = self._twin(adapter_name)
        config = self._own_config(adapter_name)
        self.peft_config[adapter_name] = config if config.from_file else self._config_for(config, model)
        super().inject_adapter(model, adapter_name, *args, **kwargs)
        # kept: to walk all modules of a model takes a few percent of a small forward
        self._adapted_layers = [module for module in model.modules() if isinstance(module, TTLoraLayer)]
        layers = self._layers_with(adapter_name)
        self._write_shapes(self.peft_config[adapter_name], adapter_name, layers)
        for layer in layers.values():
            if twin is not None and twin in layer.cores:
                layer.cores[adapter_name].data.copy_(layer.cores[twin])
                if twin in layer.starts:
                    layer.starts[adapter_name].copy_(layer.starts[twin])

    def _config_for(self, config: Any, model: nn.Module) -> Any:
        """A new adapter's config, in the words of this model."""
        return config

    @abstractmethod
    def _write_shapes(self, config: Any, adapter_name: str, layers: dict[str, TTLoraLayer]) -> None:
        """Write sizes and shapes of its layers into the adapter's config, which then says what its cores mean."""

    def _layers(self) -> Iterator[tuple[str, TTLoraLayer]]:
        """The adapted layers by the names that the config's patterns know."""
        for path, module in self.model.named_modules():
            if isinstance(module, TTLoraLayer):
                yield module.name_in_patterns(path.replace(".base_layer", "")), module

    def _layers_with(self, adapter_name: str) -> dict[str, TTLoraLayer]:
        return {name: layer for name, layer in self._layers() if adapter_name in layer.updates}

    @contextmanager
    def _enable_peft_forward_hooks(
        self, *_: Any, adapter_names: list[str] | None = None, num_beams: int | None = None, **__: Any
    ) -> Iterator[None]:
        """Build all factors at once, and hand the names of a mixed batch to the layers."""
        # a replica of nn.DataParallel has layers of its own, whose cores lie on its device
        layers = [] if getattr(self, "_is_replica", False) else self._adapted_layers
        if adapter_names is None:
            with nullcontext() if torch.compiler.is_compiling() else self._build(layers).handed_on():
                yield
        else:
            known = {name for adapters in self.pooled for name in adapter_names if name in adapters}
            if twice := sorted(known.intersection(self.peft_config)):
                raise ValueError(f"there are two adapters {twice[0]!r}: PEFT's and one in a pool; delete one of them")
            built = build_together(layers, adapter_names, self.pooled)
            with mixed_batch(self, adapter_names, num_beams, known), built.handed_on():
                yield

    def _build(self, layers: Sequence[TTLoraLayer]) -> BuiltFactors:
        """The factors that a forward will ask its layers for."""
        return build_together(layers)

    @property
    def pooled(self) -> Sequence[PooledAdapters]:
        """Adapters beside those that PEFT knows, which a mixed batch may name."""
        return tuple(child for child in self.children() if isinstance(child, PooledAdapters))
