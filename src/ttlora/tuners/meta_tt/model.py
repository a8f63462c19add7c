"""A transformer whose target modules are updated by one tensor train."""

from ttlora.tuners.shared.layer import SharedLinear
from ttlora.tuners.shared.model import SharedModel


class MetaTTLinear(SharedLinear):
    """A linear layer that MetaTT updates; see `SharedLinear`."""

    adapter_layer_names = ("meta_tt_train",)
    other_param_names = ("meta_tt_dropout", "meta_tt_update")

    def __repr__(self) -> str:
        return super().__repr__().replace("ttlora.", "meta_tt.", 1)


class MetaTTModel(SharedModel):
    """Puts `MetaTTLinear` in the place of the target modules of a model; made by ``get_peft_model``."""

    prefix = "meta_tt_"
    tuner_layer_cls = MetaTTLinear
