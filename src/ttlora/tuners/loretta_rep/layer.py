"""Linear layers whose weight is updated by a LoRA of tensor trains."""

from jaxtyping import Float
from torch import Tensor

from ttlora.tuners.loretta_rep.config import LorettaRepConfig, resolve_factors
from ttlora.tuners.loretta_rep.update import LorettaRepUpdate
from ttlora.tuners.tt_lora.linear import TTLoraLinear


class LorettaRepLinear(TTLoraLinear):
    """``y = W0 x + b + (α / r) B A x``, with a tensor train for each of ``B`` and ``A`` (Yang et al. 2024).

    It differs from TT-LoRA's layer in what the flat vector of an adapter means, and in the names by which PEFT knows
    an adapter's parts. For ``nn.Linear``, quantised or not, and ``transformers``' ``Conv1D``.
    """

    adapter_layer_names = ("loretta_rep_cores",)
    other_param_names = ("loretta_rep_dropout", "loretta_rep_update")

    def _resolve_update(self, config: LorettaRepConfig, module_name: str) -> LorettaRepUpdate:  # type: ignore[override]
        return resolve_factors(config, module_name, self.out_features, self.in_features)

    def _start(  # type: ignore[override]
        self, update: LorettaRepUpdate, config: LorettaRepConfig
    ) -> Float[Tensor, "parameters"]:
        return update.start(zero=config.init_weights)

    def __repr__(self) -> str:
        return super().__repr__().replace("ttlora.", "loretta_rep.", 1)
