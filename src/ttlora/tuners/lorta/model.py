"""A transformer whose target modules are updated by one CP decomposition."""

from torch import nn

from ttlora.tuners.lorta.config import LortaConfig, head_dim_of
from ttlora.tuners.shared.layer import SharedLinear
from ttlora.tuners.shared.model import SharedModel


class LortaLinear(SharedLinear):
    """A linear layer that LoRTA updates; see `SharedLinear`."""

    adapter_layer_names = ("lorta_factors",)
    other_param_names = ("lorta_dropout", "lorta_update")

    def __repr__(self) -> str:
        return super().__repr__().replace("ttlora.", "lorta.", 1)


class LortaModel(SharedModel):
    """Puts `LortaLinear` in the place of the target modules of a model; made by ``get_peft_model``."""

    prefix = "lorta_"
    tuner_layer_cls = LortaLinear

    def _config_for(self, config: LortaConfig, model: nn.Module) -> LortaConfig:
        if config.head_dim is None:
            config.head_dim = head_dim_of(getattr(model, "config", None))
        return config
