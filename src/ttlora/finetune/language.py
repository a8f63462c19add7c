"""What a causal model writes: texts, answers and chats that it learns, and pairs of which it learns to prefer one."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from datasets import Dataset
from datasets.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars
from torch import Tensor
from torch.nn import functional as F
from trl import pack_dataset
from trl.trainer.dpo_trainer import DataCollatorForPreference
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

from ttlora.compat import add_fused_head
from ttlora.errors import UserError
from ttlora.finetune.base import Base
from ttlora.finetune.data import Split
from ttlora.finetune.inputs import Preferred, Prompted
from ttlora.finetune.objective import Computed, Objective
from ttlora.finetune.recipe import Recipe
from ttlora.finetune.stored import scratch_folder, store
from ttlora.finetune.tasks import Task
from ttlora.finetune.tokens import IGNORED, TokenRow, answer_ids, common_start, prompt_ids, shortened, turn_ids


class LanguageObjective(Objective):
    """A causal model that learns the tokens of texts, of answers after prompts, or of an assistant's turns in chats.

    Rows become token ids here and not in TRL, which drops the end of a row that is too long: the answer.
    """

    is_labelled = False

    def __init__(self, task: Task, base: Base, recipe: Recipe) -> None:
        super().__init__(task, base, recipe)
        add_fused_head(base.plain)
        if task.kind == "generation" and self.longest_prompt < 1:
            raise UserError(
                f"`max_new_tokens` is {recipe.max_new_tokens}, and model {base.name} takes "
                f"{self.longest_prompt + recipe.max_new_tokens} tokens, prompt and answer together: lower it"
            )

    @property
    def longest_prompt(self) -> int:
        """How many tokens a prompt may have, so that the model has room for the answer that it writes."""
        answer = self.recipe.max_new_tokens
        return self.base.longest_input(self.recipe.max_length + answer) - answer

    def rows(self, split: Split, for_training: bool) -> Iterator[tuple[TokenRow, bool]]:
        """Every row with its targets; of one that is too long the beginning of the prompt is cut."""
        for given, place in zip(split.inputs, split.places, strict=True):
            assert isinstance(given, Prompted)
            if self.task.kind == "generation" and not for_training:
                # what is measured will be written after it
                prompt_ids(given, self.base, place)
            ids, targets, was_cut = shortened(*self._tokens(given, place), self.max_length, self.base, place)
            yield {"input_ids": ids, "labels": targets}, was_cut

    def _tokens(self, given: Prompted, place: str) -> tuple[list[int], list[int]]:
        loss_on = self.recipe.loss_on or "answer"
        if not isinstance(given.prompt, str):
            chat = (*given.prompt, given.ending or {"role": "assistant", "content": given.answers[0]})
            ids, targets = turn_ids(chat, loss_on == "assistant", self.base, place, given.tools)
        elif loss_on == "assistant":
            raise UserError(
                f"{place}: `loss_on` assistant needs chats, whose messages have roles, and this row is a text: set it "
                "to answer or all"
            )
        else:
            ends = self.task.kind == "generation"
            ids, targets = answer_ids(given.prompt, given.answers[0], self.base, place, ends)
        return ids, list(ids) if loss_on == "all" else targets

    def encode(self, split: Split, for_training: bool = False) -> tuple[Dataset, int]:
        """As of every objective; with `packing` several rows to train on stand in one, as long as a row may be."""
        rows, cut = super().encode(split, for_training)
        if for_training and self.recipe.packing:
            self._require_apart()
            with scratch_folder() as folder, _without_bar():
                # without a file that is named, TRL would put them together in memory
                file = str(folder / "packed.arrow")
                rows = store(pack_dataset(rows, self.max_length, map_kwargs={"cache_file_name": file}))
        return rows, cut

    def _require_apart(self) -> None:
        """Refuse to pack rows for a model in which they would see one another.

        Raises:
            UserError: What stands in one changes what the model says to the next.
        """
        model = self.base.model
        if model.device.type == "meta":
            return
        was_training = model.training
        said = []
        for first in (0, 1):
            ids = [first, 2, 3, 4, 5, 6]
            batch = self.collate([{"input_ids": ids, "labels": ids, "seq_lengths": [3, 3]}])
            batch = {name: of.to(model.device) if isinstance(of, Tensor) else of for name, of in batch.items()}
            with torch.no_grad():
                said.append(model.eval()(**batch, fused_lm_head=True).log_probs[0, 3:])
        model.train(was_training)
        if not torch.allclose(said[0], said[1], atol=1e-3):
            raise UserError(
                f"`packing`: in model {self.base.name} with `method` {self.recipe.method} rows that are packed would "
                "see one another: train without"
            )

    def prompts(self, split: Split) -> list[list[int]]:
        """The token ids of the prompts after which the model writes; of a long one the beginning is cut."""
        prompts = []
        for given, place in zip(split.inputs, split.places, strict=True):
            ids = prompt_ids(given, self.base, place)
            surplus = max(len(ids) - self.longest_prompt, 0)
            prompts.append([*ids[:1], *ids[surplus + 1 :]])
        return prompts

    def collate(self, rows: Sequence[TokenRow]) -> dict[str, Tensor]:
        """Pad the rows at their end, or put packed ones one after the other."""
        collator = DataCollatorForLanguageModeling(self.tokenizer.pad_token_id, padding_free="seq_lengths" in rows[0])
        batch = dict(collator(rows))
        # nothing foretells a row's first token, but the virtual ones of a learned prompt
        batch["labels"][:, 0] = IGNORED
        return batch

    def items(self, batch: dict[str, Tensor]) -> int:
        """The number of tokens to be learned, without the first token of a row, which is not predicted."""
        return int((batch["labels"][:, 1:] != IGNORED).sum())

    def compute(self, model: Any, batch: dict[str, Tensor]) -> Computed:
        """The mean loss of the tokens; for each row the sum of theirs, their number, and how many ranked first."""
        output = model(**batch, fused_lm_head=True)
        sums, tokens = -output.log_probs.sum(1), output.label_mask.sum(1)
        foreseen = output.is_top1.sum(1)
        return Computed(sums.sum() / tokens.sum().clamp(min=1), torch.stack([sums, tokens, foreseen], -1))


@contextmanager
def _without_bar() -> Iterator[None]:
    """Keep away the bar that `datasets` shows of a step that takes a moment, also in log files."""
    if are_progress_bars_disabled():
        yield
        return
    disable_progress_bars()
    try:
        yield
    finally:
        enable_progress_bars()


class PreferenceObjective(Objective):
    """A causal model that learns to prefer one of two answers: direct preference optimisation (Rafailov et al. 2023).

    An answer's reward is β times the log of how much likelier it is to the model than to its base without the adapter.
    """

    is_labelled = False

    def __init__(self, task: Task, base: Base, recipe: Recipe) -> None:
        super().__init__(task, base, recipe)
        if not hasattr(base.model, "disable_adapter"):
            raise UserError(
                f"`label_kind` preference compares a model with its base, which `method` {recipe.method} changes: take "
                "one with an adapter, such as tt-lora"
            )
        add_fused_head(base.plain)

    @property
    def beta(self) -> float:
        """How much a difference from the base model counts."""
        return 0.1 if self.recipe.beta is None else self.recipe.beta

    def rows(self, split: Split, for_training: bool) -> Iterator[tuple[TokenRow, bool]]:
        """The prompt and both answers; of a long prompt the beginning is cut, and of long answers the end."""
        for given, place in zip(split.inputs, split.places, strict=True):
            assert isinstance(given, Preferred)
            (chosen, of_chosen), (rejected, of_rejected) = (
                self._tokens(given, answer, place) for answer in (given.chosen, given.rejected)
            )
            start = min(common_start(chosen, rejected), of_chosen.count(IGNORED), of_rejected.count(IGNORED))
            longest = max(len(chosen), len(rejected))
            if start < 1:
                raise UserError(f"{place}: the tokenizer makes no token of the prompt: take the row out, or mend it")
            taken = min(max(longest - self.max_length, 0), start - 1)
            prompt = [*chosen[:1], *chosen[1 + taken : start]]
            room = self.max_length - len(prompt)
            row = {"prompt_ids": prompt, "chosen_ids": chosen[start:][:room], "rejected_ids": rejected[start:][:room]}
            # by which rows of like lengths are found
            row["input_ids"] = prompt + max(row["chosen_ids"], row["rejected_ids"], key=len)
            yield row, longest > self.max_length

    def _tokens(self, given: Preferred, answer: Any, place: str) -> tuple[list[int], list[int]]:
        if isinstance(given.prompt, str):
            return answer_ids(given.prompt, answer, self.base, place, ends=True)
        return turn_ids((*given.prompt, *answer), False, self.base, place, given.tools)

    def collate(self, rows: Sequence[TokenRow]) -> dict[str, Tensor]:
        """Pad all preferred answers with their prompts, then all others, at their end."""
        return dict(DataCollatorForPreference(self.tokenizer.pad_token_id)(rows))

    def items(self, batch: dict[str, Tensor]) -> int:
        """The number of pairs."""
        return len(batch["input_ids"]) // 2

    def compute(self, model: Any, batch: dict[str, Tensor]) -> Computed:
        """The mean of -log σ(r_chosen - r_rejected), their Eq. 7; for each row both rewards."""
        with torch.no_grad(), self.base.model.disable_adapter():
            reference = _log_likelihoods(model, batch)
        rewards = self.beta * (_log_likelihoods(model, batch) - reference)
        chosen, rejected = rewards.chunk(2)
        return Computed(-F.logsigmoid(chosen - rejected).mean(), torch.stack([chosen, rejected], -1))


def _log_likelihoods(model: Any, batch: dict[str, Tensor]) -> Tensor:
    """The log-likelihood of each answer."""
    labels = batch["input_ids"].masked_fill(batch["completion_mask"] == 0, IGNORED)
    output = model(
        input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], labels=labels, fused_lm_head=True
    )
    log_likelihoods: Tensor = output.log_probs.sum(1)
    return log_likelihoods
