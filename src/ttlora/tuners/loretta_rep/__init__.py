"""LoRETTA-rep as a PEFT method (Yang et al. 2024): a LoRA whose two factors are tensor trains."""

from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from peft.utils import register_peft_method

from ttlora.tuners.loretta_rep.config import LORETTA_REP, LorettaRepConfig
from ttlora.tuners.loretta_rep.layer import LorettaRepLinear
from ttlora.tuners.loretta_rep.model import LorettaRepModel

if LORETTA_REP not in PEFT_TYPE_TO_CONFIG_MAPPING:
    register_peft_method(name="loretta_rep", config_cls=LorettaRepConfig, model_cls=LorettaRepModel)

__all__ = ["LorettaRepConfig", "LorettaRepLinear", "LorettaRepModel"]
