"""Fine-tune transformers with adapters of tens of kilobytes: tensor-train methods for Hugging Face PEFT.

Importing it registers the methods with PEFT, so that saved adapters load with PEFT's own functions.
"""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

__all__ = [
    "BottleneckConfig",
    "BottleneckModel",
    "LorettaRepConfig",
    "LorettaRepModel",
    "TTLoraConfig",
    "TTLoraModel",
]

# The command answers --help and typing mistakes without the seconds that torch and PEFT take to import; each of its
# subcommands imports what it needs, and with it the registration.
_IS_COMMAND = bool(sys.argv) and Path(sys.argv[0]).stem == "ttlora"

if TYPE_CHECKING or not _IS_COMMAND:
    from ttlora.tuners.bottleneck import BottleneckConfig, BottleneckModel
    from ttlora.tuners.loretta_rep import LorettaRepConfig, LorettaRepModel
    from ttlora.tuners.tt_lora import TTLoraConfig, TTLoraModel
else:

    def __getattr__(name: str) -> Any:
        if name not in __all__:
            raise AttributeError(f"module 'ttlora' has no attribute {name!r}")
        from ttlora.tuners import bottleneck, loretta_rep, tt_lora

        return getattr(next(part for part in (bottleneck, loretta_rep, tt_lora) if name in part.__all__), name)
