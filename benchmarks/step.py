"""A whole training step: forward, loss, backward, gradient clipping and AdamW.

    python benchmarks/step.py [--rounds 15] [--json step.json]

The models have random weights: a BERT of 12 layers of 768 with a classification head at 16 rows of 128 tokens, and a
Llama of SmolLM2-135M's size at 4 rows of 128. "frozen" is the model without adapter, with the full backward: down to
what the embeddings give out. All contestants have that reach, the adapted ones too, so that they differ in their
adapters alone. Where there is a head, all train it. Bar: at most 1.03 times the frozen model, and at most LoRA's time;
with TT-LoRA's defaults, which adapt all linear layers but query and key, at most 1.06 times the frozen model.
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from contestants import DEFAULT, TT, adapted, adapter_configs, default_configs, encoder, llama, sharing_weights
from measuring import Bar, Row, compare, in_turn, parse, publish
from torch import Tensor, nn
from transformers import PreTrainedModel

# what is compared, and at most how much of it
BARS = {
    "to_frozen": ("x the frozen model", 1.03),
    "to_lora": ("x LoRA", 1.0),
    "bytes_to_lora": ("x LoRA's peak", 1.0),
}
# they adapt twice as many layers as the others do, and more
BARS_OF_DEFAULTS = {"to_frozen": ("x the frozen model", 1.06)}


def main() -> None:
    arguments = parse(__doc__)
    rows = [
        row
        for case, model, batch in models_and_batches(arguments.dtype)
        for row in measure(case, model, batch, arguments.rounds)
    ]
    publish(arguments, "step", rows)


def models_and_batches(dtype: torch.dtype) -> Iterator[tuple[str, PreTrainedModel, dict[str, Tensor]]]:
    model: PreTrainedModel = encoder(dtype)
    ids = torch.randint(1000, 30000, (16, 128))
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": torch.randint(2, (16,))}
    yield "BERT 12 x 768, 16 x 128", model, batch
    model = llama(dtype)
    ids = torch.randint(1000, 30000, (4, 128))
    yield "Llama 30 x 576, 4 x 128", model, {"input_ids": ids, "labels": ids}


def measure(case: str, model: PreTrainedModel, batch: dict[str, Tensor], rounds: int) -> list[Row]:
    models = contestants(model)
    for name, config in default_configs(model, task_type=task_of(model)).items():
        models[name] = adapted(model, config)
    figures = compare(in_turn({name: step(m, batch) for name, m in models.items()}, rounds, case=case))
    return [Row(case, name, of_model, bars_of(name, of_model)) for name, of_model in figures.items()]


def task_of(model: PreTrainedModel) -> str:
    return "SEQ_CLS" if hasattr(model, "classifier") else "CAUSAL_LM"


def bars_of(name: str, figures: dict[str, float]) -> tuple[Bar, ...]:
    """The bars that TT-LoRA's figures have to meet, as far as there are any."""
    bars = {TT: BARS, DEFAULT: BARS_OF_DEFAULTS}.get(name, {})
    return tuple(Bar(*bar, figures[key]) for key, bar in bars.items() if key in figures)


def contestants(model: PreTrainedModel) -> dict[str, nn.Module]:
    """The frozen model and the adapted ones: the same weights, the same reach, the same head to train."""
    model.requires_grad_(False)
    model.enable_input_require_grads()
    task = task_of(model)
    frozen = sharing_weights(model)
    if task == "SEQ_CLS":
        # in the adapted models PEFT trains a copy of the head
        frozen.classifier = nn.Linear(model.classifier.in_features, model.config.num_labels, dtype=model.dtype)
    return {"frozen": frozen} | {
        name: adapted(model, config) for name, config in adapter_configs(task_type=task).items()
    }


def step(model: Any, batch: dict[str, Tensor]) -> Callable[[], object]:
    model.train()
    learned = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(learned, lr=1e-4) if learned else None

    def run() -> None:
        model(**batch).loss.backward()
        if optimizer is not None:
            torch.nn.utils.clip_grad_norm_(learned, 1.0)
            optimizer.step()
            optimizer.zero_grad()

    return run


if __name__ == "__main__":
    main()
