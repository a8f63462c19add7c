"""Supervised fine-tuning of a causal language model with TRL and a TT-LoRA adapter.

    python examples/sft/sft.py --model SmolLM2-135M-Instruct --data rows.jsonl --output sft-output

MODEL is a folder or a name on the hub. Each line of the data is an object in one of TRL's formats:

    {"text": "what the model shall learn to write"}
    {"prompt": "what it is given", "completion": "what it shall answer"}
    {"messages": [{"role": "user", "content": "..."}, {"role": "assistant", "content": "..."}]}

TRL is a package of its own: `pip install trl`. The output folder holds the adapter and the tokenizer; at the end the
adapter is loaded anew and says something.
"""

import argparse
import json
import sys
from pathlib import Path

import torch
from datasets import Dataset
from peft import AutoPeftModelForCausalLM
from transformers import AutoTokenizer, pipeline
from trl import SFTConfig, SFTTrainer

from ttlora import TTLoraConfig

FORMATS = ({"text"}, {"prompt", "completion"}, {"messages"})


def main() -> None:
    options = read_options()
    rows = read_rows(options.data)
    if options.output.exists() and any(options.output.iterdir()):
        sys.exit(f"{options.output} is not empty: name another --output")
    tokenizer = AutoTokenizer.from_pretrained(options.model)
    if "messages" in rows[0] and tokenizer.chat_template is None:
        sys.exit(f"{options.model} has no chat template for rows of messages: use rows with a text, or a chat model")

    # a CPU computes float32 faster than bfloat16
    half = torch.accelerator.is_available()
    trainer = SFTTrainer(
        options.model,
        args=SFTConfig(
            str(options.output),
            num_train_epochs=options.epochs,
            per_device_train_batch_size=options.batch_size,
            learning_rate=options.learning_rate,
            max_length=options.max_length,
            bf16=half,
            model_init_kwargs={"dtype": "bfloat16" if half else "float32"},
            logging_steps=10,
            save_strategy="no",
            report_to="none",
        ),
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
        peft_config=TTLoraConfig(r=options.r, task_type="CAUSAL_LM"),  # the one line that is not LoRA's
    )
    trainer.model.print_trainable_parameters()
    trainer.train()
    trainer.save_model()
    size = (options.output / "adapter_model.safetensors").stat().st_size
    print(f"{options.output}: an adapter of {size / 1024:.0f} KiB")

    model = AutoPeftModelForCausalLM.from_pretrained(options.output, dtype="auto")
    speak = pipeline("text-generation", model=model, tokenizer=tokenizer)
    prompt = options.prompt or opening(rows[0])
    asked = [{"role": "user", "content": prompt}] if "messages" in rows[0] else prompt
    said = speak(asked, max_new_tokens=40, do_sample=False, return_full_text=False)[0]["generated_text"]
    print(f"{prompt!r} -> {said!r}")


def read_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="folder or hub name of a causal language model")
    parser.add_argument("--data", required=True, type=Path, help="JSONL file, see above")
    parser.add_argument("--output", required=True, type=Path, help="new folder for the adapter")
    parser.add_argument("--r", type=int, default=5, help="TT-rank (%(default)s)")
    parser.add_argument("--epochs", type=float, default=1.0, help="(%(default)s)")
    parser.add_argument("--batch-size", type=int, default=4, help="rows a step (%(default)s)")
    parser.add_argument("--learning-rate", type=float, default=1e-3, help="(%(default)s)")
    parser.add_argument("--max-length", type=int, default=512, help="tokens a row (%(default)s)")
    parser.add_argument("--prompt", help="what the trained model answers at the end (the beginning of the first row)")
    return parser.parse_args()


def read_rows(path: Path) -> list[dict]:
    """The rows in the columns that TRL takes; every row has those of the first."""
    try:
        rows = [json.loads(line) for line in path.read_text("utf-8").splitlines() if line.strip()]
    except (OSError, ValueError) as error:
        sys.exit(f"{path} cannot be read as JSONL: {error}")
    columns = next(
        (columns for columns in FORMATS if rows and isinstance(rows[0], dict) and columns <= set(rows[0])), None
    )
    if columns is None:
        sys.exit(f"{path}: the first row has none of {', '.join(' and '.join(sorted(c)) for c in FORMATS)}")
    for number, row in enumerate(rows, 1):
        if not isinstance(row, dict) or not columns <= set(row):
            sys.exit(f"{path}: row {number} has no {' and '.join(sorted(columns))}")
    return [{column: row[column] for column in columns} for row in rows]


def opening(row: dict) -> str:
    """What a row begins with: the prompt, the first message or the first five words."""
    if "messages" in row:
        return next(message["content"] for message in row["messages"] if message["role"] == "user")
    return row.get("prompt") or " ".join(row["text"].split()[:5])


if __name__ == "__main__":
    main()
