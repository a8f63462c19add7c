"""Fine-tune transformers with adapters of tens of kilobytes: tensor-train methods for Hugging Face PEFT.

Importing it registers the methods with PEFT, so that saved adapters load with PEFT's own functions. What else it gives
is imported when it is used.
"""

import importlib
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from ttlora.quiet import without_notes_on_builds

with without_notes_on_builds():
    from ttlora.tuners.bottleneck import BottleneckConfig, BottleneckModel
    from ttlora.tuners.loretta_rep import LorettaRepConfig, LorettaRepModel
    from ttlora.tuners.lorta import LortaConfig, LortaModel
    from ttlora.tuners.meta_tt import MetaTTConfig, MetaTTModel
    from ttlora.tuners.tt_lora import TTLoraConfig, TTLoraModel

if TYPE_CHECKING:
    from ttlora.adapters.convert import import_lora
    from ttlora.adapters.export import export
    from ttlora.adapters.inspect import inspect
    from ttlora.adapters.pool import AdapterPool, load_many
    from ttlora.adapters.round import round
    from ttlora.finetune.finished import evaluate, predict
    from ttlora.finetune.merge import merge
    from ttlora.finetune.recipe import Recipe
    from ttlora.finetune.route import route
    from ttlora.finetune.run import train
    from ttlora.planner.plan import plan

__all__ = [
    "AdapterPool",
    "BottleneckConfig",
    "BottleneckModel",
    "LorettaRepConfig",
    "LorettaRepModel",
    "LortaConfig",
    "LortaModel",
    "MetaTTConfig",
    "MetaTTModel",
    "Recipe",
    "TTLoraConfig",
    "TTLoraModel",
    "__version__",
    "evaluate",
    "export",
    "import_lora",
    "inspect",
    "load_many",
    "merge",
    "plan",
    "predict",
    "round",
    "route",
    "train",
]

__version__ = version("ttlora")

_IMPORTED_WHEN_USED = {
    "AdapterPool": "ttlora.adapters.pool",
    "Recipe": "ttlora.finetune.recipe",
    "evaluate": "ttlora.finetune.finished",
    "export": "ttlora.adapters.export",
    "import_lora": "ttlora.adapters.convert",
    "inspect": "ttlora.adapters.inspect",
    "load_many": "ttlora.adapters.pool",
    "merge": "ttlora.finetune.merge",
    "plan": "ttlora.planner.plan",
    "predict": "ttlora.finetune.finished",
    "round": "ttlora.adapters.round",
    "route": "ttlora.finetune.route",
    "train": "ttlora.finetune.run",
}


def __getattr__(name: str) -> Any:
    if name not in _IMPORTED_WHEN_USED:
        raise AttributeError(f"module 'ttlora' has no attribute {name!r}")
    try:
        value = getattr(importlib.import_module(_IMPORTED_WHEN_USED[name]), name)
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"ttlora.{name} needs {error.name}, which the core alone does not bring: "
            "python -m pip install 'ttlora[train]'",
            name=error.name,
        ) from None
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
