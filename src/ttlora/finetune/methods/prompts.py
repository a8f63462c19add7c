"""Methods that learn a prompt: vectors in front of a row's embeddings, or of the keys and values of all layers."""

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

from peft import PrefixTuningConfig, get_peft_model_state_dict, set_peft_model_state_dict
from safetensors.torch import save_file
from torch import nn

from ttlora.adapters.weights import read_weights
from ttlora.errors import UserError
from ttlora.finetune.base import Base
from ttlora.finetune.methods.peft_method import CONFIG, WEIGHTS, PeftMethod
from ttlora.finetune.recipe import Recipe
from ttlora.finetune.tasks import Task

PROMPT = "prompt.safetensors"


@dataclass(frozen=True)
class PromptMethod(PeftMethod):
    """A prompt-learning method of PEFT.

    PEFT saves the prompt, and not the network that may make it in training. So a checkpoint has two files: one from
    which Trainer goes on, with that network, and the prompt, which becomes the adapter.
    """

    files: ClassVar[Mapping[str, str]] = {CONFIG: CONFIG, PROMPT: WEIGHTS}

    def _adapt(self, base: Base, recipe: Recipe) -> Any:
        """Put the prompt in front of the model; PEFT makes the copy of the head that trains."""
        model = super()._adapt(base, recipe)
        # a model without weights is there to be counted alone
        if base.model.device.type != "meta":
            self._require_runnable(replace(base, model=model), recipe)
        return model

    def _require_runnable(self, base: Base, recipe: Recipe) -> None:
        if base.model.config.is_encoder_decoder:
            raise UserError(
                f"method {recipe.method} does not fit models of an encoder and a decoder, as {recipe.model} is: "
                "use another method"
            )
        if self.config is PrefixTuningConfig and not _takes_keys_and_values(base.model.get_base_model()):
            raise UserError(
                f"method {recipe.method} puts keys and values in front of a row, which models of type "
                f"{base.model.config.model_type} do not take: use prompt or p-tuning"
            )
        if self.config is PrefixTuningConfig and recipe.gradient_checkpointing:
            raise UserError(
                f"`gradient_checkpointing` does not go with method {recipe.method}, whose keys and values cannot be "
                "computed again: leave it out"
            )
        count, left = base.virtual_tokens, base.longest_input(recipe.max_length)
        if left < 1:
            raise UserError(
                f"num_virtual_tokens in `settings` is {count}, and model {recipe.model} takes {count + left} tokens "
                "with the row's own: set fewer"
            )

    def save(self, model: Any, folder: Path) -> None:
        """Save the prompt, and what Trainer needs to go on."""
        super().save(model, folder)
        (folder / WEIGHTS).rename(folder / PROMPT)
        encoder = model.prompt_encoder["default"]
        state = get_peft_model_state_dict(model, save_embedding_layers=False)
        state |= {f"prompt_encoder.default.{name}": weight for name, weight in encoder.named_parameters()}
        # this is what PEFT reads an encoder's embedding from
        state["prompt_embeddings"] = encoder.embedding.weight
        tensors = {name: weight.detach().clone().contiguous() for name, weight in state.items()}
        save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})

    def load(self, recipe: Recipe, task: Task, folder: Path, base: Base | None = None) -> Base:
        """Load from PEFT's form."""
        base = self._load_untrained(recipe, task, folder, base)
        model = base.model
        wanted = get_peft_model_state_dict(model, save_embedding_layers=False)
        weights = read_weights(folder / WEIGHTS, recipe.model, wanted)
        encoder = model.prompt_encoder["default"]
        # the prompt takes the place of the embedding that it was made from, which stays to be counted
        encoder.embedding_in_training = encoder.embedding
        prompt = weights["prompt_embeddings"]
        encoder.embedding = nn.Embedding(*prompt.shape).requires_grad_(False)
        model.peft_config["default"].inference_mode = True
        set_peft_model_state_dict(model, weights)
        return base


def _takes_keys_and_values(model: Any) -> bool:
    body = getattr(model, model.base_model_prefix, model)
    return any("past_key_values" in inspect.signature(part.forward).parameters for part in (model, body))
