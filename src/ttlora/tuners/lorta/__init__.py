"""LoRTA as a PEFT method: one CP decomposition for the updates of all layers, types and heads."""

from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from peft.utils import register_peft_method

from ttlora.tuners.lorta.config import LORTA, LortaConfig
from ttlora.tuners.lorta.model import LortaLinear, LortaModel

if LORTA not in PEFT_TYPE_TO_CONFIG_MAPPING:
    register_peft_method(name="lorta", config_cls=LortaConfig, model_cls=LortaModel)

__all__ = ["LortaConfig", "LortaLinear", "LortaModel"]
