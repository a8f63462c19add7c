"""`transformers.pipeline` with adapted models."""

import pytest
import torch
from peft import AutoPeftModelForCausalLM, AutoPeftModelForSequenceClassification, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer, pipeline

SENTENCES = ["the film was great", "a dull story about people"]


@pytest.fixture
def classifier(bert, tmp_path):
    """Builds the same base each time: its head is in the folder too."""
    tokenizer = AutoTokenizer.from_pretrained(bert)
    AutoModelForSequenceClassification.from_pretrained(bert).save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    return lambda: AutoModelForSequenceClassification.from_pretrained(tmp_path / "base")


def scores(model, tokenizer):
    """By hand, what a pipeline should say."""
    with torch.no_grad():
        outputs = model.eval()(**tokenizer(SENTENCES, return_tensors="pt", padding=True)).logits
    return outputs.softmax(-1).max(-1).values.tolist()


def test_classification(classifier, random_update, tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "base")
    model = get_peft_model(classifier(), random_update(task_type="SEQ_CLS"))
    model.save_pretrained(tmp_path / "adapter")
    tokenizer.save_pretrained(tmp_path / "adapter")
    expected = scores(model, tokenizer)
    assert expected != pytest.approx(scores(classifier(), tokenizer), abs=1e-3)

    def said(model, **options):
        pipe = pipeline("text-classification", model=model, device="cpu", **options)
        return [row["score"] for row in pipe(SENTENCES, padding=True)]

    assert said(model, tokenizer=tokenizer) == pytest.approx(expected, abs=1e-6)
    auto = AutoPeftModelForSequenceClassification.from_pretrained(tmp_path / "adapter")
    assert said(auto, tokenizer=tokenizer) == pytest.approx(expected, abs=1e-6)
    assert said(auto.merge_and_unload(), tokenizer=tokenizer) == pytest.approx(expected, abs=1e-5)
    assert said(str(tmp_path / "adapter")) == pytest.approx(expected, abs=1e-6)


def test_generation_with_two_adapters_that_are_switched(llama, random_update, tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(llama)
    tokenizer.pad_token = "[PAD]"
    base = AutoModelForCausalLM.from_pretrained(llama, dtype=torch.float32)
    for name in ("one", "two"):
        # large updates, so that they change what is said
        get_peft_model(base, random_update(task_type="CAUSAL_LM", alpha=40)).save_pretrained(tmp_path / name)
        base = AutoModelForCausalLM.from_pretrained(llama, dtype=torch.float32)
        tokenizer.save_pretrained(tmp_path / name)

    def said(model):
        pipe = pipeline("text-generation", model=model, tokenizer=tokenizer, device="cpu")
        options = {"max_new_tokens": 8, "min_new_tokens": 8, "do_sample": False, "return_full_text": False}
        return pipe("the film was", **options)[0]["generated_text"]

    plain = said(base)
    expected = {
        name: said(AutoPeftModelForCausalLM.from_pretrained(tmp_path / name, dtype=torch.float32))
        for name in ("one", "two")
    }
    assert len({plain, *expected.values()}) == 3

    model = PeftModel.from_pretrained(base, tmp_path / "one", adapter_name="one")
    model.load_adapter(tmp_path / "two", adapter_name="two")
    for name in ("one", "two", "one"):
        model.set_adapter(name)
        assert said(model) == expected[name]
    with model.disable_adapter():
        assert said(model) == plain
    merged = model.merge_and_unload(adapter_names=["two"])
    assert said(merged) == expected["two"]
