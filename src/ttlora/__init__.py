"""Fine-tune transformers with adapters of tens of kilobytes: tensor-train methods for Hugging Face PEFT.

Importing it registers the methods with PEFT, so that saved adapters load with PEFT's own functions.
"""

from ttlora.tuners.tt_lora import TTLoraConfig, TTLoraModel

__all__ = ["TTLoraConfig", "TTLoraModel"]
