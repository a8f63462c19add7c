import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForSequenceClassification,
    BertConfig,
    BertForSequenceClassification,
    T5Config,
    T5ForConditionalGeneration,
)

from tests.conftest import make_tokenizer
from ttlora.errors import UserError
from ttlora.finetune.base import load_base
from ttlora.finetune.tasks import Task

CLASSES = Task("file", ("text",), labels=("bad", "good", "mixed"))
NUMBERS = Task("file", ("text",), kind="regression")


def test_head_has_an_output_for_each_class(bert):
    base = load_base(str(bert), CLASSES)
    assert base.head == ("classifier", "bert.pooler")
    assert base.model.classifier.out_features == 3
    assert base.model.config.id2label == {0: "bad", 1: "good", 2: "mixed"}
    assert load_base(str(bert), NUMBERS).model.classifier.out_features == 1


def test_seed_decides_the_heads_start(bert):
    heads = [load_base(str(bert), CLASSES, seed).model.classifier.weight for seed in (1, 1, 2)]
    assert torch.equal(heads[0], heads[1])
    assert not torch.equal(heads[0], heads[2])


def test_causal_model_in_half_precision_gets_a_padding_token(llama):
    base = load_base(str(llama), CLASSES)
    assert base.head == ("score",)
    assert base.model.config.pad_token_id == base.tokenizer.pad_token_id == base.tokenizer.eos_token_id
    assert base.model.dtype == torch.bfloat16


def test_float16_is_computed_in_bfloat16(bert, tmp_path):
    AutoModelForSequenceClassification.from_pretrained(bert).half().save_pretrained(tmp_path)
    make_tokenizer().save_pretrained(tmp_path)
    assert load_base(str(tmp_path), CLASSES).model.dtype == torch.bfloat16


def test_the_pooler_is_part_of_the_head(bert, tmp_path):
    assert load_base(str(bert), CLASSES).head == ("classifier", "bert.pooler")
    assert load_base(str(bert), CLASSES, on_meta=True).head == ("classifier", "bert.pooler")

    shutil.copytree(bert, tmp_path / "bert")
    weights = load_file(bert / "model.safetensors")
    kept = {name: weight for name, weight in weights.items() if not name.startswith("pooler.")}
    assert len(kept) == len(weights) - 2
    save_file(kept, tmp_path / "bert" / "model.safetensors", metadata={"format": "pt"})
    assert load_base(str(tmp_path / "bert"), CLASSES).head == ("classifier", "bert.pooler")


def test_head_of_another_size_is_replaced_by_a_new_one(bert, tmp_path):
    AutoModelForSequenceClassification.from_pretrained(bert, num_labels=7).save_pretrained(tmp_path)
    make_tokenizer().save_pretrained(tmp_path)
    base = load_base(str(tmp_path), CLASSES)
    assert base.model.classifier.out_features == 3
    assert base.head == ("classifier", "bert.pooler")


def test_longest_input_is_what_the_model_takes(bert, llama):
    assert load_base(str(bert), CLASSES).longest_input(128) == 40
    assert load_base(str(bert), CLASSES).longest_input(16) == 16
    assert load_base(str(llama), CLASSES).longest_input(128) == 128


def test_missing_weights_are_refused(bert, tmp_path):
    shutil.copytree(bert, tmp_path / "bert")
    weights = load_file(bert / "model.safetensors")
    save_file(
        {name: weight for name, weight in weights.items() if "layer.1." not in name},
        tmp_path / "bert" / "model.safetensors",
        metadata={"format": "pt"},
    )
    with pytest.raises(
        UserError, match=r"holds no weights that fit bert\.encoder\.layer\.1.*no whole pretrained model"
    ):
        load_base(str(tmp_path / "bert"), CLASSES)


def test_folder_that_is_not_there_or_empty(tmp_path):
    for name in (str(tmp_path / "nowhere"), "./nowhere", "a/b/c"):
        with pytest.raises(UserError, match=f"model folder {name} is not there"):
            load_base(name, CLASSES)
    with pytest.raises(UserError, match=r"holds no config\.json"):
        load_base(str(tmp_path), CLASSES)


def test_folder_without_a_tokenizer(tmp_path):
    config = BertConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1)
    BertForSequenceClassification(config).save_pretrained(tmp_path)
    with pytest.raises(UserError, match=f"model {tmp_path} .* without the files of its tokenizer"):
        load_base(str(tmp_path), CLASSES)


def test_damaged_weights(bert, tmp_path):
    shutil.copytree(bert, tmp_path / "bert")
    file = tmp_path / "bert" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(UserError, match="cannot be loaded"):
        load_base(str(tmp_path / "bert"), CLASSES)


def test_t5_without_the_files_of_its_tokenizer(tmp_path):
    """Transformers makes up a tokenizer of a hundred tokens for it, none of which is a word."""
    T5ForConditionalGeneration(T5Config(d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2)).save_pretrained(tmp_path)
    with pytest.raises(UserError, match="comes without the files of its tokenizer"):
        load_base(str(tmp_path), CLASSES)


def test_a_model_with_code_of_its_own(bert, tmp_path):
    shutil.copytree(bert, tmp_path / "bert")
    config = tmp_path / "bert" / "config.json"
    content = json.loads(config.read_text())
    own = {"model_type": "own", "auto_map": {"AutoConfig": "own.Config", "AutoModel": "own.Model"}}
    config.write_text(json.dumps(content | own))
    (tmp_path / "bert" / "own.py").write_text("raise SystemExit('this code was run')\n")
    with pytest.raises(UserError, match="it comes with code of its own, which ttlora does not run"):
        load_base(str(tmp_path / "bert"), CLASSES)
