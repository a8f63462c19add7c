"""Fine-tune transformers with adapters of tens of kilobytes: tensor-train methods for Hugging Face PEFT.

Importing it registers the methods with PEFT, so that saved adapters load with PEFT's own functions.
"""

from importlib.metadata import version

from ttlora.tuners.bottleneck import BottleneckConfig, BottleneckModel
from ttlora.tuners.loretta_rep import LorettaRepConfig, LorettaRepModel
from ttlora.tuners.tt_lora import TTLoraConfig, TTLoraModel

__all__ = [
    "BottleneckConfig",
    "BottleneckModel",
    "LorettaRepConfig",
    "LorettaRepModel",
    "TTLoraConfig",
    "TTLoraModel",
    "__version__",
]

__version__ = version("ttlora")
