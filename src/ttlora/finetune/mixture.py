"""Finished runs as the experts of a mixture: all in one model, and each row of a batch through its own."""

import hashlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from peft import PeftModel, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from peft.utils import ModulesToSaveWrapper
from torch import Tensor

from ttlora.adapters.read import Adapter, read_adapter
from ttlora.adapters.weights import read_weights
from ttlora.errors import UserError, one_line
from ttlora.finetune.base import Base, load_base
from ttlora.finetune.data import Split
from ttlora.finetune.folder import RunFolder
from ttlora.finetune.inputs import Input
from ttlora.finetune.measure import batches
from ttlora.finetune.methods import find_method
from ttlora.finetune.methods.method import in_float32
from ttlora.finetune.objectives import HeadObjective, objective_of
from ttlora.finetune.recipe import Recipe
from ttlora.finetune.router import computing_as_trained, fingerprint
from ttlora.finetune.tasks import Task
from ttlora.finetune.tokens import TokenRow
from ttlora.record import Record
from ttlora.values import shown

# those of PEFT's that a batch may mix, of the methods that a recipe knows by name
METHODS = ("tt-lora", "lora")


@dataclass(frozen=True)
class Expert:
    """A finished run as an expert of a mixture.

    Attributes:
        name: What it is called: the name of its run's folder.
        folder: The run's folder.
        record: What ``result.json`` holds.
        recipe: How it was trained.
        task: Its task, the labels known.
    """

    name: str
    folder: RunFolder
    record: Record
    recipe: Recipe
    task: Task

    @classmethod
    def read(cls, run: str | Path) -> "Expert":
        """Read all of a run but the weights.

        Args:
            run: Output folder of `train`.

        Raises:
            UserError: It holds no finished run, or one that cannot be an expert.
        """
        path = Path(os.path.expanduser(run))
        folder = RunFolder(path)
        record, recipe, task = folder.read_result(), Recipe.read(folder.recipe), folder.read_task()
        if recipe.method not in METHODS:
            raise UserError(
                f"{path} is a run of method {recipe.method}, and a batch can mix those of {' or '.join(METHODS)}"
            )
        if task.learns_language:
            raise UserError(
                f"{path} is a run of label kind {task.kind}, and experts of a mixture answer with labels, numbers or "
                "choices"
            )
        return cls(path.resolve().name, folder, record, recipe, task)

    @property
    def digest(self) -> str:
        """A digest of its weights."""
        return hashlib.sha256(self.adapter.weights_file.read_bytes()).hexdigest()

    @property
    def adapter(self) -> Adapter:
        """Its adapter folder, checked."""
        return read_adapter(self.folder.adapter)

    @property
    def outputs(self) -> int:
        """How many outputs its head has; one that answers with words has none."""
        if self.task.is_causal:
            return 0
        return len(self.task.labels) if self.task.kind == "classification" else 1


def require_fit_together(experts: Sequence[Expert]) -> None:
    """Refuse experts that one model cannot hold.

    Raises:
        UserError: There are fewer than two, one is there twice, or two differ in base or method.
    """
    if len(experts) < 2:
        raise UserError("`experts`: a router chooses among experts: name two or more")
    first, *_ = experts
    names: dict[str, Expert] = {}
    digests: dict[str, Expert] = {}
    for expert in experts:
        digest = expert.digest
        if (twin := digests.get(digest)) is not None:
            same = f"expert {twin.folder.path} is there twice"
            is_same = os.path.realpath(twin.folder.path) == os.path.realpath(expert.folder.path)
            raise UserError(same if is_same else f"{same}: {expert.folder.path} holds the same adapter")
        if (other := names.get(expert.name)) is not None:
            raise UserError(
                f"{other.folder.path} and {expert.folder.path} would both be called {expert.name!r}: rename one of the "
                "folders"
            )
        names[expert.name], digests[digest] = expert, expert
        for what in ("model", "method", "scoring", "head", "dtype", "quantize"):
            its, other_value = (getattr(of.recipe, what) for of in (expert, first))
            if its != other_value and not (what == "model" and os.path.realpath(its) == os.path.realpath(other_value)):
                raise UserError(
                    f"{expert.folder.path} has {what} {shown(its)}, and {first.folder.path} {shown(other_value)}: "
                    "experts of a mixture share their base and their way to answer"
                )


class HeadsByRow(ModulesToSaveWrapper):
    """A part of the head, of which each expert has its own, as the adapter's config names it in ``modules_to_save``.

    PEFT's own mixes rows through linear layers of one width alone. Here the part may be any module whose first argument
    and whose output have a row for each row of the batch; an output is as wide as the widest, filled with zeros.
    """

    def forward(self, *args: Any, adapter_names: Sequence[str] | None = None, **kwargs: Any) -> Any:
        """The output of each row's own part; without names as PEFT has it.

        Args:
            *args: What the part takes, the rows first.
            adapter_names: An adapter for each row.
            **kwargs: What else it takes.
        """
        if adapter_names is None:
            return super().forward(*args, **kwargs)  # type: ignore[no-untyped-call]
        inputs, *others = args
        parts = []
        for name in dict.fromkeys(adapter_names):
            rows = [row for row, its in enumerate(adapter_names) if its == name]
            parts.append((rows, self.modules_to_save[name](inputs[rows], *others, **kwargs)))
        shape = parts[0][1].shape[1:-1]
        outputs = parts[0][1].new_zeros(len(inputs), *shape, max(part.shape[-1] for _, part in parts))
        for rows, part in parts:
            outputs[rows, ..., : part.shape[-1]] = part
        return outputs


class Mixture:
    """Experts in one base model.

    Attributes:
        experts: The experts.
        base: The base model with all adapters, ready to compute.
        fingerprint: That of the base model.
        padding: Pads rows as for a head.
    """

    def __init__(self, experts: Sequence[Expert], base: Base, of_base: str) -> None:
        self.experts, self.base, self.fingerprint = experts, base, of_base
        self._objectives = [objective_of(expert.task, base, expert.recipe) for expert in experts]
        self.padding = HeadObjective(experts[0].task, base, experts[0].recipe)

    @classmethod
    def load(cls, experts: Sequence[Expert], model: str | None = None) -> "Mixture":
        """Load the base model once, and all experts into it.

        Args:
            experts: As `require_fit_together` allows them.
            model: Where the base model is now; None: where the recipes say.

        Raises:
            UserError: The base model is not there, or an expert is damaged or does not fit it.
        """
        recipe = experts[0].recipe
        if model is not None:
            recipe = replace(recipe, model=model).with_defaults({})
        form = find_method(recipe.method).form(recipe)
        base = load_base(recipe.model, experts[0].task, form=form)
        of_base = fingerprint(base)
        adapted: Any = None
        for index, expert in enumerate(experts):
            adapter = expert.adapter
            name, config = _name(index), adapter.config
            config.inference_mode = False
            try:
                if adapted is None:
                    adapted = get_peft_model(base.model, config, name)
                else:
                    adapted.add_adapter(name, config)
                    adapted.set_adapter(name)
                if expert.outputs != experts[0].outputs:
                    skeleton = load_base(recipe.model, expert.task, form=form, on_meta=True).model
                    _resize_heads(adapted, name, skeleton)
                in_float32(adapted)
                wanted = get_peft_model_state_dict(adapted, adapter_name=name, save_embedding_layers=False)
                tensors = read_weights(adapter.weights_file, recipe.model, wanted)
                set_peft_model_state_dict(adapted, tensors, adapter_name=name)
            except (ValueError, TypeError, KeyError) as error:
                raise UserError(f"{adapter.folder} does not fit model {recipe.model}: {one_line(error)}") from None
        for module in adapted.modules():
            if isinstance(module, ModulesToSaveWrapper):
                module.__class__ = HeadsByRow
        adapted.eval().requires_grad_(False)
        # quantised weights are there already, and cannot be moved
        if recipe.quantize is None and torch.accelerator.is_available():
            adapted.to(torch.accelerator.current_accelerator())
        return cls(experts, replace(base, model=adapted), of_base)

    def encode(self, expert: int, inputs: Sequence[Input], places: Sequence[str]) -> list[TokenRow]:
        """Rows as token ids, in the form that an expert was trained on.

        Args:
            expert: The expert's number.
            inputs: What is put to it.
            places: Where each row stands, for messages.

        Raises:
            UserError: The model does not know a row's tokens.
        """
        split = Split(inputs, [0] * len(inputs), places)
        return [row for row, _ in self._objectives[expert].rows(split, for_training=False)]

    def answers(self, chosen: Sequence[int], rows: Sequence[TokenRow]) -> list[Tensor]:
        """The outputs of each row's expert: probabilities of classes or choices, or a number.

        The batches mix experts: rows come in them by their lengths alone.

        Args:
            chosen: The number of each row's expert.
            rows: The rows, as `encode` makes them for that expert.
        """
        answers: list[Tensor] = [torch.empty(0)] * len(rows)
        answer = self._by_likelihood if self.experts[0].task.is_causal else self._by_heads
        lengths = [max(map(len, _sequences(row))) for row in rows]
        for batch in batches(lengths, self.experts[0].recipe.batch_size):
            its = [rows[index] for index in batch]
            names = [_name(chosen[index]) for index in batch for _ in _sequences(rows[index])]
            for index, output in zip(batch, answer([chosen[index] for index in batch], its, names), strict=True):
                answers[index] = output
        return answers

    @torch.no_grad()
    def _by_likelihood(self, chosen: Sequence[int], rows: Sequence[TokenRow], names: list[str]) -> Iterator[Tensor]:
        model = self.base.model
        # which of them it is does not matter: prompts and answers are in the rows
        objective = self._objectives[0]
        batch = {name: values.to(model.device) for name, values in objective.collate(rows).items()}
        with computing_as_trained(model):
            outputs = objective.compute(partial(model, adapter_names=names), batch).outputs.float().cpu()
        return (output[: len(_sequences(row))] for output, row in zip(outputs, rows, strict=True))

    @torch.no_grad()
    def _by_heads(self, chosen: Sequence[int], rows: Sequence[TokenRow], names: list[str]) -> Iterator[Tensor]:
        model = self.base.model
        sequences = [sequence for row in rows for sequence in row.get("choices", [row])]
        given = [{name: values for name, values in sequence.items() if name != "labels"} for sequence in sequences]
        batch = {name: values.to(model.device) for name, values in self.padding.collate(given).items()}
        with computing_as_trained(model):
            logits = model(**batch, adapter_names=names).logits.float().cpu()
        parts = torch.split(logits, [len(_sequences(row)) for row in rows])
        return (self._of_head(self.experts[expert], part) for expert, part in zip(chosen, parts, strict=True))

    def _of_head(self, expert: Expert, logits: Float[Tensor, "sequences widest"]) -> Tensor:
        if expert.task.kind == "choice":
            return logits[:, 0].softmax(-1)
        return logits[0, :1] if expert.task.kind == "regression" else logits[0, : expert.outputs].softmax(-1)


def _sequences(row: TokenRow) -> list[list[int]]:
    """The token ids of a row: one sequence, or one for each choice or answer."""
    ids: list[Any] = row["input_ids"]
    return ids if isinstance(ids[0], list) else [ids]


def _name(index: int) -> str:
    """What PEFT calls an expert: its own name may hold what no module's can."""
    return f"expert_{index}"


def _resize_heads(adapted: PeftModel, adapter_name: str, skeleton: Any) -> None:
    """Put parts of other sizes in the place of those that PEFT has copied from the base; their weights come later."""
    for path, wrapper in adapted.get_base_model().named_modules():
        if isinstance(wrapper, ModulesToSaveWrapper):
            wanted = skeleton.get_submodule(path)
            sizes = [weight.shape for weight in wanted.parameters()]
            if sizes != [weight.shape for weight in wrapper.modules_to_save[adapter_name].parameters()]:
                device = next(wrapper.original_module.parameters()).device
                wrapper.modules_to_save[adapter_name] = wanted.to_empty(device=device)
