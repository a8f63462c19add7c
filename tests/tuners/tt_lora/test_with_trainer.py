import torch
from peft import PeftModel, get_peft_model
from safetensors.torch import load_file
from torch.utils.data import Dataset
from transformers import Trainer, TrainingArguments

from ttlora import TTLoraConfig


class Rows(Dataset):
    """Sentences of random words, labelled by whether the first is one of the smaller numbers."""

    def __init__(self, count=32):
        words = torch.randint(3, 60, (count, 7), generator=torch.Generator().manual_seed(3))
        self.rows = [{"input_ids": row, "attention_mask": torch.ones_like(row), "labels": row[0] % 2} for row in words]

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, index):
        return self.rows[index]


def trainer(bert, folder, **arguments):
    torch.manual_seed(0)
    model = get_peft_model(bert.build(), TTLoraConfig(task_type="SEQ_CLS", dropout=0.1))
    settings = {
        "num_train_epochs": 3,
        "per_device_train_batch_size": 8,
        "learning_rate": 1e-3,
        "save_strategy": "steps",
        "save_steps": 2,
        "logging_steps": 1,
        "report_to": [],
        "use_cpu": True,
        "disable_tqdm": True,
        "seed": 7,
    }
    return Trainer(model, TrainingArguments(str(folder), **settings | arguments), train_dataset=Rows())


def trained(trainer):
    return {name: p.detach().clone() for name, p in trainer.model.named_parameters() if p.requires_grad}


def losses(trainer):
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def test_a_run_that_goes_on_from_a_checkpoint_ends_in_the_same_bits(architectures, tmp_path):
    bert = architectures["bert"]
    whole = trainer(bert, tmp_path / "whole")
    before = trained(whole)
    whole.train()
    resumed = trainer(bert, tmp_path / "resumed")
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-6"))
    assert len(losses(whole)) == len(losses(resumed)) == 12
    assert losses(whole) == losses(resumed)
    for name, value in trained(whole).items():
        assert torch.equal(trained(resumed)[name], value)
        assert not torch.equal(before[name], value)


def test_checkpoints_hold_the_adapter_alone(architectures, tmp_path):
    bert = architectures["bert"]
    run = trainer(bert, tmp_path, max_steps=2)
    run.train()
    folder = tmp_path / "checkpoint-2"
    assert not list(folder.glob("model*"))
    names = set(load_file(folder / "adapter_model.safetensors"))
    assert len(names) == bert.count + 2
    assert all("ttlora_cores" in name or "classifier" in name for name in names)
    loaded = PeftModel.from_pretrained(bert.build(), folder)
    with torch.no_grad():
        expected = run.model.eval()(**bert.inputs).logits
        assert torch.equal(loaded.eval()(**bert.inputs).logits, expected)


def test_checkpointed_gradients_train_alike(architectures, tmp_path):
    bert = architectures["bert"]
    plain = trainer(bert, tmp_path / "plain", max_steps=3)
    plain.train()
    checkpointed = trainer(bert, tmp_path / "checkpointed", max_steps=3, gradient_checkpointing=True)
    checkpointed.train()
    for name, value in trained(plain).items():
        torch.testing.assert_close(trained(checkpointed)[name], value)


def test_the_default_start_learns(architectures, tmp_path):
    run = trainer(architectures["bert"], tmp_path, num_train_epochs=30, learning_rate=1e-3, save_strategy="no")
    run.train()
    first, last = losses(run)[:4], losses(run)[-4:]
    assert sum(last) < 0.8 * sum(first)
