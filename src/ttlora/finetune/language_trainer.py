"""TRL's trainers of language models, with our rows, our losses over several processes, and our checkpoints."""

from dataclasses import dataclass
from typing import Any

from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer

from ttlora.finetune.language import PreferenceObjective
from ttlora.finetune.objective import Objective
from ttlora.finetune.trainer import OWN, TaskTrainer, alone, is_own

# what TRL calls the adapter that an adapted model came with
REFERENCE = "ref"


@dataclass
class SupervisedArguments(SFTConfig):
    """Arguments of `SFTTrainer` for rows that are token ids already, and short enough."""

    def __post_init__(self) -> None:
        self.dataset_kwargs, self.max_length = {"skip_prepare_dataset": True}, None
        super().__post_init__()


@dataclass
class PreferenceArguments(DPOConfig):
    """Arguments of `DPOTrainer` for rows that are short enough."""

    def __post_init__(self) -> None:
        self.max_length = None
        super().__post_init__()


class _LanguageTrainer(TaskTrainer):
    """What both trainers of TRL need to train as `TaskTrainer` does."""

    _metrics: dict[str, dict[str, list[float]]]

    def __init__(self, objective: Objective, arguments: Any, *options: Any, **keywords: Any) -> None:
        trained = [(weight, weight.data) for weight in objective.base.trained]
        super().__init__(objective, arguments, *options, processing_class=objective.tokenizer, **keywords)
        if self.args.world_size > 1:
            # what TRL gathers for its log has another shape in each process, and a process that lacks memory has none
            self.accelerator.gather = alone
        for weight, data in trained:
            # TRL holds what trains on a quantised model in bfloat16, in which small steps are lost
            weight.data = data.to(weight.device)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """TRL's log, without its count of tokens, which begins anew when a run goes on."""
        self._metrics["train"].pop("num_tokens", None)
        super().log(logs, start_time)

    def _send_telemetry(self) -> None:
        # a training tells nobody
        pass

    def create_model_card(self, *_: Any, **__: Any) -> None:
        """Write none: an adapter gets its card when it is done."""


class SupervisedTrainer(_LanguageTrainer, SFTTrainer):
    """Learns texts, answers or chats."""

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: int | None = None
    ) -> Any:
        """TRL's loss: the sum over a batch's tokens, by the number of those of all batches of a step."""
        own = {name: values for name, values in inputs.items() if name != OWN}
        loss = SFTTrainer.compute_loss(self, model, own, num_items_in_batch=num_items_in_batch)
        return loss * is_own(inputs)


class PreferenceTrainer(_LanguageTrainer, DPOTrainer):
    """Learns to prefer one of two answers."""

    objective: PreferenceObjective
    # the mean over a batch's pairs becomes its share below
    loss_is_scaled_for_ga = True

    def __init__(self, *options: Any, **keywords: Any) -> None:
        super().__init__(*options, **keywords)
        self.beta = self.objective.beta
        if REFERENCE in self.model.peft_config:
            # a copy of the adapter as it came; without it TRL compares with the base model, as the objective does
            self.model.delete_adapter(REFERENCE)

    def _prepare_dataset(self, dataset: Any, *_: Any) -> Any:
        return dataset

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: int | None = None
    ) -> Any:
        """TRL's loss: the mean over a batch's pairs, as its share in that over the pairs of all batches of a step."""
        own = {name: values for name, values in inputs.items() if name != OWN}
        return DPOTrainer.compute_loss(self, model, own) * self._share(inputs, num_items_in_batch)
