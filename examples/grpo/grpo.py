"""Reinforcement learning of a causal language model with TRL's GRPO and a TT-LoRA adapter of a few thousand parameters.

    python examples/grpo/grpo.py --model SmolLM2-135M-Instruct --output grpo-output

MODEL is a folder or a name on the hub, of a model with a chat template. It is asked for sums of two small numbers. Its
reward can be checked without a second model: 1 for the right number and nothing else, half of it for the right number
among other words, 0 otherwise. At the end stand the mean rewards of the first and of the last steps.
"""

import argparse
import random
import re
import sys
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import AutoTokenizer
from trl import GRPOConfig, GRPOTrainer

from ttlora import TTLoraConfig


def main() -> None:
    options = read_options()
    if options.output.exists() and any(options.output.iterdir()):
        sys.exit(f"{options.output} is not empty: name another --output")
    tokenizer = AutoTokenizer.from_pretrained(options.model)
    if tokenizer.chat_template is None:
        sys.exit(f"{options.model} has no chat template: take an instruction-tuned model")
    # a CPU computes float32 faster than bfloat16
    half = torch.accelerator.is_available()
    trainer = GRPOTrainer(
        options.model,
        right_sum,
        args=GRPOConfig(
            str(options.output),
            max_steps=options.steps,
            per_device_train_batch_size=options.completions,
            num_generations=options.completions,
            max_completion_length=12,
            learning_rate=options.learning_rate,
            lr_scheduler_type="constant",
            bf16=half,
            model_init_kwargs={"dtype": "bfloat16" if half else "float32"},
            gradient_checkpointing=False,
            logging_steps=1,
            save_strategy="no",
            report_to="none",
            seed=options.seed,
        ),
        train_dataset=Dataset.from_list(sums(options.steps, options.seed)),
        processing_class=tokenizer,
        peft_config=TTLoraConfig(r=options.r, task_type="CAUSAL_LM"),  # the one line that is not LoRA's
    )
    trainer.model.print_trainable_parameters()
    trainer.train()
    trainer.save_model()
    rewards = [entry["reward"] for entry in trainer.state.log_history if "reward" in entry]
    few = max(1, len(rewards) // 4)
    first, last = sum(rewards[:few]) / few, sum(rewards[-few:]) / few
    print(f"mean reward {first:.2f} in the first {few} steps, {last:.2f} in the last {few}")
    size = (options.output / "adapter_model.safetensors").stat().st_size
    print(f"{options.output}: an adapter of {size / 1024:.0f} KiB")


def read_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="folder or hub name of a causal language model")
    parser.add_argument("--output", required=True, type=Path, help="new folder for the adapter")
    parser.add_argument("--r", type=int, default=1, help="TT-rank (%(default)s)")
    parser.add_argument("--steps", type=int, default=40, help="optimisation steps, with one sum each (%(default)s)")
    parser.add_argument("--completions", type=int, default=8, help="answers to each sum (%(default)s)")
    parser.add_argument("--learning-rate", type=float, default=3e-3, help="(%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="(%(default)s)")
    return parser.parse_args()


def sums(count: int, seed: int) -> list[dict[str, Any]]:
    """Questions, each with the number that is right."""
    numbers = random.Random(seed)
    rows = []
    for _ in range(count):
        first, second = numbers.randint(1, 9), numbers.randint(1, 9)
        question = f"What is {first} + {second}? Answer with the number alone."
        rows.append({"prompt": [{"role": "user", "content": question}], "right": str(first + second)})
    return rows


def right_sum(completions: list[list[dict[str, str]]], right: list[str], **_: Any) -> list[float]:
    """The reward of each answer."""
    rewards = []
    for (message,), number in zip(completions, right, strict=True):
        said = message["content"].strip().rstrip(".")
        rewards.append(1.0 if said == number else 0.5 if number in re.findall(r"\d+", said) else 0.0)
    return rewards


if __name__ == "__main__":
    main()
