"""Bottleneck adapters as a PEFT method: dense (Houlsby et al. 2019) or of tensor trains (LoRETTA, Yang et al. 2024)."""

from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from peft.utils import register_peft_method

from ttlora.tuners.bottleneck.config import BOTTLENECK, BottleneckConfig
from ttlora.tuners.bottleneck.layer import BottleneckLinear
from ttlora.tuners.bottleneck.model import BottleneckModel, default_targets

if BOTTLENECK not in PEFT_TYPE_TO_CONFIG_MAPPING:
    register_peft_method(name="bottleneck", config_cls=BottleneckConfig, model_cls=BottleneckModel)

__all__ = ["BottleneckConfig", "BottleneckLinear", "BottleneckModel", "default_targets"]
