"""A transformer with bottleneck adapters behind its target modules."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

from torch import nn

from ttlora.tuners.bottleneck.config import BottleneckConfig, write_shape
from ttlora.tuners.bottleneck.layer import BottleneckLinear
from ttlora.tuners.bottleneck.projection import TrainLinear
from ttlora.tuners.checks import require_linear
from ttlora.tuners.mixed_batch import mixed_batch
from ttlora.tuners.norms import train_norms
from ttlora.tuners.tuner import Tuner

BERT_LIKE = (
    "bert", "camembert", "deberta", "deberta-v2", "electra", "ernie", "roberta", "xlm-roberta", "xlm-roberta-xl",
)  # fmt: skip
LLAMA_LIKE = (
    "cohere", "gemma", "gemma2", "gemma3", "gemma3_text", "granite", "llama", "mistral", "olmo", "olmo2", "phi3",
    "qwen2", "qwen3", "smollm3",
)  # fmt: skip

# The output projections of attention and feed-forward (Houlsby et al. 2019, Figure 2). The names end so that no head
# has one of them.
DEFAULT_TARGET_MODULES = {
    **{model_type: ["output.dense"] for model_type in BERT_LIKE},
    **{model_type: ["o_proj", "down_proj"] for model_type in LLAMA_LIKE},
    "albert": ["attention.dense", "ffn_output"],
    "bloom": ["self_attention.dense", "mlp.dense_4h_to_h"],
    "distilbert": ["attention.out_lin", "ffn.lin2"],
    "gpt2": ["attn.c_proj", "mlp.c_proj"],
    "gpt_neox": ["attention.dense", "mlp.dense_4h_to_h"],
    "modernbert": ["attn.Wo", "mlp.Wo"],
    "mpnet": ["attn.o", "output.dense"],
    "opt": ["self_attn.out_proj", "fc2"],
    "phi": ["self_attn.dense", "mlp.fc2"],
    "t5": ["SelfAttention.o", "EncDecAttention.o", "DenseReluDense.wo"],
}


def default_targets(model_type: str, tensorised: bool) -> list[str] | None:
    """Behind which modules the adapters stand by default, or None if that is not known for the type of the model.

    Args:
        model_type: As in the model's config.
        tensorised: LoRETTA's adapters stand behind the feed-forward alone in Llama and its like.
    """
    if tensorised and model_type in LLAMA_LIKE:
        return ["down_proj"]
    return DEFAULT_TARGET_MODULES.get(model_type)


class BottleneckModel(Tuner):
    """Puts `BottleneckLinear` in the place of the target modules of a model; made by ``get_peft_model``.

    Args:
        model: The model to adapt.
        peft_config: A `BottleneckConfig`.
        adapter_name: The adapter's name.

    Raises:
        ValueError: No module matches the targets, or a size does not fit.
        TypeError: A target is not linear.
    """

    prefix = "bottleneck_"
    tuner_layer_cls = BottleneckLinear
    target_module_mapping = DEFAULT_TARGET_MODULES

    def inject_adapter(self, model: nn.Module, adapter_name: str, *args: Any, **kwargs: Any) -> None:
        """Put adapters behind the target modules, and write their shape into the adapter's config."""
        config = self.peft_config[adapter_name] = self._own_config(adapter_name)
        super().inject_adapter(model, adapter_name, *args, **kwargs)
        layers = [layer for layer in model.modules() if isinstance(layer, BottleneckLinear)]
        ups = [layer.bottleneck_up[adapter_name] for layer in layers if adapter_name in layer.bottleneck_up]
        shapes = [up.update.shape for up in ups if isinstance(up, TrainLinear)]
        write_shape(config, {shape.out_features: shape.dims for shape in shapes})
        if config.train_layer_norms:
            train_norms(model, adapter_name, adapter_name in self.active_adapters, config.inference_mode)

    def _prepare_adapter_config(self, peft_config: BottleneckConfig, model_config: dict[str, Any]) -> BottleneckConfig:
        if peft_config.target_modules is None:
            model_type = model_config["model_type"]
            targets = default_targets(model_type, tensorised=peft_config.tt_rank is not None)
            if targets is None:
                raise ValueError(
                    f"no default targets are known for models of type '{model_type}': set target_modules to the names "
                    "of the output projections of attention and feed-forward"
                )
            peft_config.target_modules = set(targets)
        return peft_config

    def _layer_class(self, base_layer: nn.Module, name: str, parameter_name: str | None) -> type[BottleneckLinear]:
        require_linear(base_layer, name)
        return BottleneckLinear

    def _check_merge_allowed(self) -> None:
        raise ValueError(
            "bottleneck adapters cannot be merged: their non-linearity fits into no weight; keep the adapter beside "
            "the model, or take it off with unload()"
        )

    @contextmanager
    def _enable_peft_forward_hooks(
        self, *_: Any, adapter_names: list[str] | None = None, num_beams: int | None = None, **__: Any
    ) -> Iterator[None]:
        """Hand the names of a mixed batch to the layers."""
        with nullcontext() if adapter_names is None else mixed_batch(self, adapter_names, num_beams):
            yield
