"""How well an adapter learns at a learning rate: a sweep over starts, scales, shapes and ranks.

    python benchmarks/learning.py --model MODEL --data DIR/sst2 --output learning.jsonl \
        --setting lora --setting tt:core_size=0.05,alpha=2 --learning-rate 2e-4 1e-3 --seed 0 1 2

Each run fine-tunes a sequence classifier on 4,000 rows for 3 epochs (AdamW, linear decay; the head at 1e-3) and appends
one line to the output; runs that are there already are not repeated. `--table` prints means over seeds. Tasks are those
with a sentence, or two, and a label; labels that are no whole numbers make it a regression.

A setting names `lora`, `tt` or another method of `ttlora train` that has an adapter, or `bitfit`, with fields of its
config. With `pooler=true` the model's pooler trains with the head, with `mean=true` the output starts at the mean
label, and `linear=true` adapts all linear layers of the encoder. `--cut 0.5:7300` rounds an adapter of TT-LoRA or
MetaTT to 7,300 parameters after half of the steps (`ttlora round --parameters`), and trains on with a fresh AdamW:
MetaTT's rank sweeps. There may be several cuts, with commas between them.
"""

import argparse
import json
import random
import re
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel, get_peft_model
from scipy.stats import spearmanr
from torch.optim.lr_scheduler import LambdaLR
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BatchEncoding,
    get_linear_schedule_with_warmup,
)

import ttlora
from ttlora.finetune.methods import find_method
from ttlora.finetune.methods.peft_method import PeftMethod

HEAD_LEARNING_RATE = 1e-3
LINEAR = r".*layer.*(query|key|value|dense|\.q|\.k|\.v|\.o)"
TEXTS = ("sentence", "sentence1", "sentence2", "question1", "question2", "premise", "hypothesis")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True, help="folder with train.jsonl and validation.jsonl")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--setting", action="append", default=[], help="a method, with :key=value,... of its config")
    parser.add_argument("--learning-rate", type=float, nargs="+", default=[1e-3])
    parser.add_argument("--seed", type=int, nargs="+", default=[0])
    parser.add_argument("--rows", type=int, default=4000)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--cut", default="", help="share of the steps and parameters that are left, as 0.5:7300")
    parser.add_argument("--table", action="store_true", help="print what the output holds, train nothing")
    arguments = parser.parse_args()
    if not arguments.table:
        torch.set_num_threads(arguments.threads)
        for seed in arguments.seed:
            for learning_rate in arguments.learning_rate:
                for setting in arguments.setting:
                    run_once(arguments, setting, learning_rate, seed)
    print_table(arguments.output)


def run_once(arguments: argparse.Namespace, setting: str, learning_rate: float, seed: int) -> None:
    key = {"data": arguments.data.name, "model": arguments.model.name, "setting": setting}
    key |= {"learning_rate": learning_rate, "seed": seed}
    key |= {"cut": arguments.cut} if arguments.cut else {}
    key |= {"rows": arguments.rows, "epochs": arguments.epochs, "batch_size": arguments.batch_size}
    if any(key.items() <= record.items() for record in read(arguments.output)):
        return
    started = time.time()
    result = fine_tune(arguments, Setting.parse(setting), learning_rate, seed)
    record = key | result | {"seconds": round(time.time() - started)}
    with arguments.output.open("a") as lines:
        lines.write(json.dumps(record) + "\n")
    print(json.dumps(record), flush=True)


@dataclass(frozen=True)
class Setting:
    """A method with an adapter, or "bitfit", and the fields of its config."""

    method: str
    fields: dict[str, Any]
    from_mean: bool

    @classmethod
    def parse(cls, text: str) -> "Setting":
        """The setting that a text such as ``tt:r=2,alpha=4`` means."""
        name, _, values = text.partition(":")
        # lists are written [16;24;24;16], since commas separate the settings
        pairs = (pair.split("=", 1) for pair in values.split(",") if pair)
        fields: dict[str, Any] = {key: json.loads(value.replace(";", ",")) for key, value in pairs}
        if fields.pop("pooler", False):
            fields["modules_to_save"] = ["pooler", "classifier"]
        if fields.pop("linear", False):
            fields["target_modules"] = LINEAR
        from_mean = fields.pop("mean", False)
        return cls({"tt": "tt-lora"}.get(name, name), fields, from_mean)

    def adapt(self, base: Any) -> Any:
        """The model in which the adapter and the head train."""
        if self.method == "bitfit":
            saved = [*self.fields.get("modules_to_save", []), "classifier"]
            for name, weight in base.named_parameters():
                weight.requires_grad_(name.endswith("bias") or any(f".{head}." in f".{name}" for head in saved))
            return base
        method = find_method(self.method)
        assert isinstance(method, PeftMethod), "a method that has an adapter"
        own = {field: method.defaults[key] for key, field in method.keys.items()}
        # what is None is the model's own choice
        config: Any = method.config
        return get_peft_model(
            base, config(task_type="SEQ_CLS", **{**own, **method.defaults["settings"], **self.fields})
        )


def fine_tune(arguments: argparse.Namespace, setting: Setting, learning_rate: float, seed: int) -> dict[str, float]:
    torch.manual_seed(seed)
    order = random.Random(seed)
    train = rows_of(arguments.data / "train.jsonl")
    # the same rows for every seed: seeds differ in the start, the head and the order
    train = random.Random(0).sample(train, arguments.rows)
    validation = sorted(rows_of(arguments.data / "validation.jsonl"), key=length)
    tokenizer = AutoTokenizer.from_pretrained(arguments.model)
    labels = {label for _, label in train}
    outputs = 1 if any(isinstance(label, float) for label in labels) else len(labels)
    base = AutoModelForSequenceClassification.from_pretrained(arguments.model, num_labels=outputs)
    if setting.from_mean:
        torch.nn.init.constant_(base.classifier.bias, sum(label for _, label in train) / len(train))
    model = setting.adapt(base).to(arguments.device)

    adapter, optimizer = optimizer_of(model, learning_rate)
    steps = arguments.epochs * -(-len(train) // arguments.batch_size)
    schedule = get_linear_schedule_with_warmup(optimizer, 0, steps)
    pairs = (cut.split(":") for cut in arguments.cut.split(",") if cut)
    cuts = {round(float(share) * steps): int(parameters) for share, parameters in pairs}

    losses: list[torch.Tensor] = []
    model.train()
    for _ in range(arguments.epochs):
        for rows in batches_of_like_length(train, arguments.batch_size, order):
            if (done := len(losses)) in cuts:
                base = AutoModelForSequenceClassification.from_pretrained(arguments.model, num_labels=outputs)
                model = cut_to(cuts[done], model, base).to(arguments.device).train()
                adapter, optimizer = optimizer_of(model, learning_rate)
                # Adam's averages are those of other cores: a few small steps give it new ones
                schedule = LambdaLR(optimizer, lambda step, done=done: rate_after(done + step, step, steps))
            loss = model(**batch_of(rows, tokenizer).to(arguments.device)).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_([p for p in model.parameters() if p.requires_grad], 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            losses.append(loss.detach())

    model.eval()
    answers: list[float] = []
    total = 0.0
    with torch.no_grad():
        for first in range(0, len(validation), 64):
            rows = validation[first : first + 64]
            output = model(**batch_of(rows, tokenizer).to(arguments.device))
            answers += (output.logits[:, 0] if outputs == 1 else output.logits.argmax(-1)).tolist()
            total += output.loss.item() * len(rows)
    wanted = [label for _, label in validation]
    right = sum(answer == label for answer, label in zip(answers, wanted, strict=True)) / len(wanted)
    last = losses[-len(losses) // arguments.epochs :]
    return {
        "parameters": sum(p.numel() for p in adapter),
        "score": float(spearmanr(answers, wanted).statistic) if outputs == 1 else right,
        "validation_loss": total / len(validation),
        "train_loss": torch.stack(last).mean().item(),
    }


def optimizer_of(model: Any, learning_rate: float) -> tuple[list[torch.nn.Parameter], torch.optim.Optimizer]:
    """What the adapter trains, and AdamW for it and for the head."""
    trained = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
    # without PEFT the head is where it was
    of_head = re.compile("modules_to_save" if isinstance(model, PeftModel) else r"(^|\.)(pooler|classifier)\.")
    head = [weight for name, weight in trained.items() if of_head.search(name)]
    adapter = [weight for name, weight in trained.items() if not of_head.search(name)]
    groups = [{"params": adapter, "lr": learning_rate}, {"params": head, "lr": HEAD_LEARNING_RATE}]
    return adapter, torch.optim.AdamW(groups, weight_decay=0.0)


def cut_to(parameters: int, model: Any, base: Any) -> Any:
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(f"{folder}/whole")
        ttlora.round(f"{folder}/whole", f"{folder}/cut", parameters=parameters)
        return PeftModel.from_pretrained(base, f"{folder}/cut", is_trainable=True)


def rate_after(step: int, since_cut: int, steps: int) -> float:
    return max(0.0, 1 - step / steps) * min(1.0, (since_cut + 1) / 10)


Row = tuple[tuple[str, ...], int | float]


def rows_of(path: Path) -> list[Row]:
    rows = [json.loads(line) for line in path.read_text().splitlines() if line]
    texts = [name for name in rows[0] if name in TEXTS]
    return [(tuple(row[name] for name in texts), row["label"]) for row in rows]


def length(row: Row) -> int:
    return sum(map(len, row[0]))


def batches_of_like_length(train: list[Row], size: int, order: random.Random) -> list[list[Row]]:
    """Batches sorted by length within runs of 512 rows, in random order: half the padding is half the time."""
    order.shuffle(train)
    runs = [sorted(train[first : first + 512], key=length) for first in range(0, len(train), 512)]
    batches = [run[first : first + size] for run in runs for first in range(0, len(run), size)]
    order.shuffle(batches)
    return batches


def batch_of(rows: list[Row], tokenizer: Any) -> BatchEncoding:
    columns = [list(column) for column in zip(*(texts for texts, _ in rows), strict=True)]
    batch = tokenizer(*columns, padding=True, truncation=True, max_length=128, return_tensors="pt")
    batch["labels"] = torch.tensor([label for _, label in rows])
    return batch


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def print_table(path: Path) -> None:
    """One table for each task, model and length of training: their numbers do not compare."""
    tables: dict[str, dict[tuple[Any, ...], list[dict[str, Any]]]] = {}
    for record in read(path):
        title = "{data}, {model}, {rows} rows, {epochs} epochs, batches of {batch_size}".format(**record)
        name = record["setting"] + (f", cut {record['cut']}" if "cut" in record else "")
        setting = name, record["learning_rate"], record["parameters"]
        tables.setdefault(title, {}).setdefault(setting, []).append(record)
    for title, groups in tables.items():
        print(f"\n{title}\n")
        print("| setting | parameters | learning rate | score (seeds) | mean | validation loss | train loss |")
        print("|---|---|---|---|---|---|---|")
        for (name, learning_rate, parameters), records in sorted(groups.items()):
            scores = [record["score"] for record in sorted(records, key=lambda record: record["seed"])]
            seeds = " ".join(f"{score:.3f}" for score in scores)
            losses = [
                f"{sum(record[kind] for record in records) / len(records):.3f}"
                for kind in ("validation_loss", "train_loss")
            ]
            numbers = [f"{parameters:,}", f"{learning_rate:g}", seeds, f"{sum(scores) / len(scores):.3f}", *losses]
            print("| " + " | ".join([name, *numbers]) + " |")


if __name__ == "__main__":
    main()
