"""sentence-transformers with our config in `add_adapter`."""

import numpy as np
import pytest
import torch
from datasets import Dataset
from safetensors import safe_open
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer, SentenceTransformerTrainingArguments
from sentence_transformers.sentence_transformer.losses import CoSENTLoss
from sentence_transformers.sentence_transformer.modules import Pooling, Transformer

from tests.ecosystem.conftest import cores_of
from ttlora import TTLoraConfig

SENTENCES = ["the film was great", "a dull story about people", "its house was bright"]


@pytest.fixture
def build(bert):
    def build():
        transformer = Transformer(str(bert))
        return SentenceTransformer(modules=[transformer, Pooling(transformer.get_embedding_dimension())], device="cpu")

    return build


def test_an_adapter_is_trained_saved_and_loaded(build, tmp_path):
    model = build()
    base = model.encode(SENTENCES)
    model.add_adapter(TTLoraConfig())
    assert np.array_equal(model.encode(SENTENCES), base)
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert trained == set(cores_of(model))

    pairs = {"sentence1": SENTENCES, "sentence2": SENTENCES[::-1], "score": [0.1, 1.0, 0.2]}
    trainer = SentenceTransformerTrainer(
        model,
        args=SentenceTransformerTrainingArguments(
            str(tmp_path / "run"), max_steps=2, learning_rate=1e-2, use_cpu=True, report_to=[], disable_tqdm=True
        ),
        train_dataset=Dataset.from_dict(pairs),
        loss=CoSENTLoss(model),
    )
    before = cores_of(model)
    trainer.train()
    assert all(not torch.equal(before[name], cores) for name, cores in cores_of(model).items())
    expected = model.encode(SENTENCES)
    assert np.abs(expected - base).max() > 1e-3

    model.save_pretrained(str(tmp_path / "whole"))
    assert np.array_equal(SentenceTransformer(str(tmp_path / "whole"), device="cpu").encode(SENTENCES), expected)

    # and as an adapter of another copy of the base
    model[0].auto_model.save_pretrained(tmp_path / "adapter")
    with safe_open(tmp_path / "adapter" / "adapter_model.safetensors", "pt") as file:
        assert all("ttlora_cores" in name for name in file.keys())  # noqa: SIM118
    other = build()
    other.load_adapter(str(tmp_path / "adapter"))
    assert np.array_equal(other.encode(SENTENCES), expected)
    other.disable_adapters()
    assert np.array_equal(other.encode(SENTENCES), base)
    other.enable_adapters()
    assert np.array_equal(other.encode(SENTENCES), expected)
