"""TT-LoRA as a PEFT method: the update of each adapted weight is a tensor train, of which only the cores train."""

from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from peft.utils import register_peft_method

from ttlora.compat import add_hotswap
from ttlora.tuners.targets import DEFAULT_TARGET_MODULES
from ttlora.tuners.tt_lora.config import TTLORA, TTLoraConfig, resolve_update, saved_kind, saved_update
from ttlora.tuners.tt_lora.fused_experts import names_of_experts
from ttlora.tuners.tt_lora.hotswap import swap_cores
from ttlora.tuners.tt_lora.layer import TTLoraLayer
from ttlora.tuners.tt_lora.model import TTLoraModel
from ttlora.tuners.tt_lora.pooled import PooledAdapters

if TTLORA not in PEFT_TYPE_TO_CONFIG_MAPPING:
    register_peft_method(name="ttlora", config_cls=TTLoraConfig, model_cls=TTLoraModel)
    add_hotswap(TTLORA, swap_cores)

__all__ = [
    "DEFAULT_TARGET_MODULES",
    "PooledAdapters",
    "TTLoraConfig",
    "TTLoraLayer",
    "TTLoraModel",
    "names_of_experts",
    "resolve_update",
    "saved_kind",
    "saved_update",
]
