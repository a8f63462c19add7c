"""Rows that a model can do nothing with end a run in a line that names them, before anything is written."""

import json
import shutil

import pytest
import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedTokenizerFast,
)

from tests.conftest import write_jsonl
from ttlora.errors import UserError
from ttlora.finetune.base import Base, load_base
from ttlora.finetune.finished import FinishedRun
from ttlora.finetune.recipe import Recipe
from ttlora.finetune.run import train
from ttlora.finetune.tasks import Task

GOOD_ROWS = [{"text": "the film was great", "label": number % 2, "reply": "a story"} for number in range(6)]
HEAD: dict = {}
PROMPT = {"scoring": "prompt", "prompt": "{text}"}
GENERATION = {"label_kind": "generation", "label_column": "reply", "max_new_tokens": 2}
TEXT = {"label_kind": "text"}


@pytest.fixture(scope="module")
def gpt2(llama, tmp_path_factory):
    """A model whose tokenizer adds nothing to a text."""
    folder = tmp_path_factory.mktemp("gpt2")
    GPT2LMHeadModel(GPT2Config(n_embd=32, n_layer=1, n_head=2, n_positions=40, vocab_size=24)).save_pretrained(folder)
    tokenizer = json.loads((llama / "tokenizer.json").read_text())
    tokenizer["post_processor"] = None
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    shutil.copy(llama / "tokenizer_config.json", folder)
    return folder


def recipe_for(model, tmp_path, train, validation, **keys):
    files = {
        "train": str(write_jsonl(tmp_path / "train.jsonl", train)),
        "validation": str(write_jsonl(tmp_path / "validation.jsonl", validation)),
        "output": str(tmp_path / "out"),
    }
    return Recipe(model=str(model), task="file", **files, epochs=1, batch_size=2, threads=1, **keys)


def in_place(rows, place, **cells):
    return [{**row, **cells} if number == place else row for number, row in enumerate(rows, 1)]


@pytest.mark.parametrize("split", ["train", "validation"])
@pytest.mark.parametrize(
    ("keys", "cells", "complaint"),
    [
        (HEAD, {"text": ""}, "makes no token of the row's text"),
        (PROMPT, {"text": ""}, "the row is a single token"),
        (TEXT, {"text": ""}, "makes no token of the row's text"),
        (TEXT, {"text": "film"}, "the row is a single token"),
        (GENERATION, {"text": "", "reply": "film"}, "makes no token of the row's text"),
    ],
)
def test_rows_without_tokens(split, keys, cells, complaint, gpt2, tmp_path):
    rows = {"train": GOOD_ROWS, "validation": GOOD_ROWS, split: in_place(GOOD_ROWS, 4, **cells)}
    recipe = recipe_for(gpt2, tmp_path, **rows, **keys)
    if keys is GENERATION and split == "train":
        # what is learned there is the reply alone
        assert train(recipe, quiet=True).epochs == 1
        return
    with pytest.raises(UserError, match=rf"{split}\.jsonl, line 4: .*{complaint}.*: take the row out"):
        train(recipe, quiet=True)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("keys", [HEAD, GENERATION, TEXT])
def test_new_rows_without_tokens(keys, gpt2, tmp_path):
    train(recipe_for(gpt2, tmp_path, GOOD_ROWS, GOOD_ROWS, **keys), quiet=True)
    path = write_jsonl(tmp_path / "new.jsonl", [{"text": "the film was"}, {"text": ""}])
    with pytest.raises(UserError, match=r"new\.jsonl, line 2: the tokenizer of model .* makes no token"):
        list(FinishedRun.load(str(tmp_path / "out")).predict(path))


@pytest.mark.parametrize("keys", [HEAD, PROMPT, GENERATION, TEXT])
def test_a_token_without_an_embedding(keys, gpt2, tmp_path):
    shutil.copytree(gpt2, tmp_path / "model")
    tokenizer = PreTrainedTokenizerFast.from_pretrained(gpt2)
    tokenizer.add_tokens(["marvellous"])
    tokenizer.save_pretrained(tmp_path / "model")
    rows = in_place(GOOD_ROWS, 3, text="the film was marvellous")
    with pytest.raises(
        UserError, match=r"train\.jsonl, line 3: the tokenizer gives 'marvellous' the number 24, .* below 24: take the"
    ):
        train(recipe_for(tmp_path / "model", tmp_path, rows, GOOD_ROWS, **keys), quiet=True)
    assert not (tmp_path / "out").exists()


def test_a_padding_token_without_an_embedding_is_not_used(gpt2, tmp_path):
    shutil.copytree(gpt2, tmp_path / "model")
    tokenizer = PreTrainedTokenizerFast.from_pretrained(gpt2)
    tokenizer.add_special_tokens({"pad_token": "<padding>"})
    tokenizer.save_pretrained(tmp_path / "model")
    base = load_base(str(tmp_path / "model"), Task("file", ("text",), labels=("a", "b")))
    assert (base.tokenizer.pad_token, base.model.config.pad_token_id) == ("[SEP]", 3)
    assert train(recipe_for(tmp_path / "model", tmp_path, GOOD_ROWS, GOOD_ROWS), quiet=True).epochs == 1


def test_a_chat_that_the_template_refuses(gpt2, tmp_path):
    shutil.copytree(gpt2, tmp_path / "model")
    tokenizer = PreTrainedTokenizerFast.from_pretrained(gpt2)
    tokenizer.chat_template = (
        "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system turns') }}{% endif %}"
        "{{ m.content }} {% endfor %}"
    )
    tokenizer.save_pretrained(tmp_path / "model")
    turns = [{"role": "user", "content": "the film"}, {"role": "assistant", "content": "was great"}]
    rows = [{"chat": turns}, {"chat": [{"role": "system", "content": "a story"}, *turns]}]
    keys = {"text_column": "chat", "label_kind": "generation", "max_new_tokens": 2}
    with pytest.raises(
        UserError, match=r"train\.jsonl, line 2: the chat template .* refuses the chat: no system turns"
    ):
        train(recipe_for(tmp_path / "model", tmp_path, rows, rows[:1], **keys), quiet=True)
    assert not (tmp_path / "out").exists()


class LongTokenizer:
    model_max_length = 10**30


# sizes under the names that the various configs have for them
SIZES = {
    **dict.fromkeys(("hidden_size", "d_model", "n_embd", "dim", "dff", "hidden_dim", "word_embed_proj_dim"), 32),
    **dict.fromkeys(("num_hidden_layers", "encoder_layers", "decoder_layers", "n_layer", "n_layers"), 1),
    **dict.fromkeys(("num_attention_heads", "encoder_attention_heads", "decoder_attention_heads", "n_head"), 2),
    **dict.fromkeys(("n_heads", "num_layers", "num_heads"), 2),
    **dict.fromkeys(("intermediate_size", "encoder_ffn_dim", "decoder_ffn_dim", "ffn_dim", "emb_dim"), 32),
    **dict.fromkeys(("max_position_embeddings", "n_positions", "max_seq_len"), 64),
    "attention_types": [[["global"], 2]],
    "vocab_size": 100,
    "rotary_dim": 8,
    "embedding_size": 32,
    "pad_token_id": 1,
    "eos_token_id": 3,
}


@pytest.mark.parametrize(
    ("model_type", "longest"),
    [
        ("bert", 64),
        ("roberta", 62),
        ("mpnet", 62),
        ("albert", 64),
        ("distilbert", 64),
        ("gpt2", 64),
        ("gpt_neo", 64),
        ("gptj", 64),
        ("openai-gpt", 64),
        ("opt", 64),
        ("bart", 64),
        ("mbart", 64),
        ("biogpt", 64),
        ("xlm", 64),
        ("ctrl", 64),
        ("mpt", 64),
        ("nystromformer", 64),
        ("ibert", 62),
        ("canine", 64),
    ],
)
def test_longest_input_knows_every_kind_of_position_table(model_type, longest):
    config = AutoConfig.for_model(model_type)
    for name, value in SIZES.items():
        if getattr(config, name, None) is not None:
            setattr(config, name, value)
    auto = AutoModelForCausalLM if model_type == "biogpt" else AutoModelForSequenceClassification
    model = auto.from_config(config).eval()
    assert Base("m", model, LongTokenizer(), ()).longest_input(200) == longest
    for length, fits in ((longest, True), (longest + 1, False)):
        ids = torch.full((1, length), 5)
        ids[0, -1] = 3
        with torch.no_grad():
            if fits:
                model(input_ids=ids)
            else:
                with pytest.raises((IndexError, RuntimeError, ValueError)):
                    model(input_ids=ids)
