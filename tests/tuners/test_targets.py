import pytest
from transformers import BertConfig, BertForSequenceClassification

from ttlora.tuners.targets import linear_names, query_and_value, require_modules


@pytest.fixture
def bert():
    return BertForSequenceClassification(
        BertConfig(vocab_size=8, hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8)
    )


def test_by_the_models_type(bert):
    assert query_and_value(bert) == ["query", "value"]
    bert.config.model_type = "own"
    with pytest.raises(ValueError, match=r"model type 'own'; name the targets, out of query, key, value, dense$"):
        query_and_value(bert, ("classifier",))


def test_by_name(bert):
    require_modules(bert, ["query", "self.value", "bert.encoder.layer.0.output.dense"])
    for name in ("uery", "bert.encoder.layer.0.output.dens", "quer"):
        with pytest.raises(ValueError, match=f"'{name}' is no module of the model; its linear modules are query, "):
            require_modules(bert, ["query", name])


def test_names_of_the_head_are_left_out(bert):
    assert linear_names(bert).split(", ") == ["query", "key", "value", "dense", "classifier"]
    assert linear_names(bert, ("classifier",)).split(", ") == ["query", "key", "value", "dense"]
