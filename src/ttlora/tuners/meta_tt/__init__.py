"""MetaTT as a PEFT method: one tensor train for the updates of all layers and all types of weights."""

from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from peft.utils import register_peft_method

from ttlora.tuners.meta_tt.config import META_TT, MetaTTConfig
from ttlora.tuners.meta_tt.model import MetaTTLinear, MetaTTModel

if META_TT not in PEFT_TYPE_TO_CONFIG_MAPPING:
    register_peft_method(name="meta_tt", config_cls=MetaTTConfig, model_cls=MetaTTModel)

__all__ = ["MetaTTConfig", "MetaTTLinear", "MetaTTModel"]
