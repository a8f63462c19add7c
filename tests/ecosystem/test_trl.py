"""TRL's trainers with our config in the place of LoRA's."""

import pytest
import torch
from datasets import Dataset
from peft import PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer

from tests.ecosystem.conftest import cores_of, logits
from ttlora import LorettaRepConfig, MetaTTConfig, TTLoraConfig

ARGUMENTS = {
    "max_steps": 6,
    "per_device_train_batch_size": 4,
    "learning_rate": 3e-3,
    "logging_steps": 1,
    "lr_scheduler_type": "constant",
    "use_cpu": True,
    "bf16": False,
    "gradient_checkpointing": False,
    "report_to": [],
    "disable_tqdm": True,
    "max_length": 16,
    "dataset_num_proc": None,
}


@pytest.fixture
def base(llama):
    """Builds the base model, its dropout and all the same each time."""
    return lambda: AutoModelForCausalLM.from_pretrained(llama, dtype=torch.float32)


@pytest.fixture
def tokenizer(llama):
    tokenizer = AutoTokenizer.from_pretrained(llama)
    tokenizer.pad_token = "[PAD]"
    return tokenizer


def losses(trainer):
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def check_adapter(trainer, before, base, folder):
    """All cores moved, nothing else did, and the saved adapter says the same to the bit."""
    after = cores_of(trainer.model)
    assert all(not torch.equal(before[name], cores) for name, cores in after.items())
    with trainer.model.disable_adapter():
        assert torch.equal(logits(trainer.model), logits(base()))
    trainer.save_model(folder)
    assert not list(folder.glob("model*"))
    loaded = PeftModel.from_pretrained(base(), folder)
    expected = logits(trainer.model)
    assert torch.equal(logits(loaded), expected)
    assert not torch.equal(expected, logits(base()))


@pytest.mark.parametrize("checkpointing", [False, True])
def test_supervised_fine_tuning(base, tokenizer, checkpointing, tmp_path):
    rows = Dataset.from_list([{"text": "the film was a lovely story about people"}] * 12)
    trainer = SFTTrainer(
        base(),
        args=SFTConfig(str(tmp_path / "run"), **{**ARGUMENTS, "gradient_checkpointing": checkpointing}),
        train_dataset=rows,
        processing_class=tokenizer,
        peft_config=TTLoraConfig(task_type="CAUSAL_LM"),
    )
    assert isinstance(trainer.model, PeftModel)
    before = cores_of(trainer.model)
    trainer.train()
    assert len(losses(trainer)) == 6
    assert losses(trainer)[-1] < losses(trainer)[0] - 0.1
    check_adapter(trainer, before, base, tmp_path / "adapter")


def test_preferences(base, tokenizer, tmp_path):
    rows = Dataset.from_list([{"prompt": "the film was", "chosen": " lovely", "rejected": " awful"}] * 12)
    trainer = DPOTrainer(
        base(),
        args=DPOConfig(str(tmp_path / "run"), **ARGUMENTS),
        train_dataset=rows,
        processing_class=tokenizer,
        peft_config=TTLoraConfig(task_type="CAUSAL_LM"),
    )
    assert trainer.ref_model is None  # the reference is the model without its adapter
    before = cores_of(trainer.model)
    trainer.train()
    first, last = losses(trainer)[0], losses(trainer)[-1]
    # before the first step the model is its own reference: -log(sigmoid(0))
    assert first == pytest.approx(torch.log(torch.tensor(2.0)).item(), abs=1e-4)
    assert last < first - 0.01
    margins = [entry["rewards/margins"] for entry in trainer.state.log_history if "rewards/margins" in entry]
    assert margins[0] == pytest.approx(0, abs=1e-6)
    assert margins[-1] > 0.01
    check_adapter(trainer, before, base, tmp_path / "adapter")


@pytest.mark.parametrize("config", [TTLoraConfig, LorettaRepConfig, MetaTTConfig])
def test_preferences_of_a_trained_adapter(base, tokenizer, config, tmp_path):
    rows = Dataset.from_list([{"prompt": "the film was", "chosen": " lovely", "rejected": " awful"}] * 4)
    trained = get_peft_model(base(), config(r=4, task_type="CAUSAL_LM", init_weights=False))
    expected = logits(trained)
    trainer = DPOTrainer(
        trained, args=DPOConfig(str(tmp_path / "run"), **ARGUMENTS), train_dataset=rows, processing_class=tokenizer
    )
    # the reference is the adapter as it came, not the model without it
    trainer.model.set_adapter("ref")
    assert torch.equal(logits(trainer.model), expected)
