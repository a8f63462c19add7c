"""ttlora merge, as it is typed: what goes along with the model, and what is refused before anything is written."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    ViTConfig,
    ViTForImageClassification,
)

from tests.cli.test_wrong_use import assert_one_line
from tests.conftest import make_tokenizer, sentiment_rows, write_jsonl
from ttlora import TTLoraConfig

TOKENS = torch.arange(4, 20).reshape(2, 8)


@pytest.fixture(scope="module")
def saved(llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter of the causal model; not to be changed."""
    folder = tmp_path_factory.mktemp("adapters") / "tt"
    torch.manual_seed(0)
    config = TTLoraConfig(task_type="CAUSAL_LM", init_weights=False)
    get_peft_model(AutoModelForCausalLM.from_pretrained(llama), config).save_pretrained(folder)
    return folder


@pytest.fixture
def adapter(saved: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    return Path(shutil.copytree(saved, tmp_path / "adapter"))


@pytest.fixture
def base(llama: Path, tmp_path: Path) -> Path:
    """A copy of its base."""
    return Path(shutil.copytree(llama, tmp_path / "base"))


def change(file: Path, **values: Any) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text("utf-8")), **values}), "utf-8")


def test_the_tokenizer_beside_the_adapter_wins(adapter, tmp_path, ttlora):
    tokenizer = make_tokenizer()
    tokenizer.chat_template = "{{ messages[0].content }} of the adapter"
    tokenizer.save_pretrained(adapter)
    assert ttlora("merge", adapter, "--output", tmp_path / "model").status == 0
    found = AutoTokenizer.from_pretrained(tmp_path / "model")
    assert found.chat_template == tokenizer.chat_template
    # the base's tokenizer pads with nothing
    assert found.pad_token == "[PAD]"
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    assert model.config.pad_token_id == found.pad_token_id


def test_a_chat_template_beside_the_adapter_alone(adapter, llama, tmp_path, ttlora):
    (adapter / "chat_template.jinja").write_text("{{ messages[0].content }}", "utf-8")
    assert ttlora("merge", adapter, "--output", tmp_path / "model").status == 0
    found = AutoTokenizer.from_pretrained(tmp_path / "model")
    assert found.chat_template == "{{ messages[0].content }}"
    assert found("the film").input_ids == AutoTokenizer.from_pretrained(llama)("the film").input_ids


def test_how_to_generate_beside_the_adapter(adapter, tmp_path, ttlora):
    (adapter / "generation_config.json").write_text('{"max_new_tokens": 7}', "utf-8")
    assert ttlora("merge", adapter, "--output", tmp_path / "model").status == 0
    assert json.loads((tmp_path / "model" / "generation_config.json").read_text())["max_new_tokens"] == 7


def test_tokens_added_with_a_tokenizer(llama, tmp_path, ttlora):
    """As TRL saves it: the tokenizer beside the adapter, and the embeddings in it."""
    torch.manual_seed(0)
    tokenizer = make_tokenizer()
    tokenizer.add_tokens(["<|user|>", "<|assistant|>"])
    base = AutoModelForCausalLM.from_pretrained(llama, dtype=torch.float32)
    base.save_pretrained(tmp_path / "base")
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    base.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    model = get_peft_model(base, TTLoraConfig(task_type="CAUSAL_LM", init_weights=False))
    model.save_pretrained(tmp_path / "adapter")
    tokenizer.save_pretrained(tmp_path / "adapter")
    inputs = tokenizer("the film <|user|> was <|assistant|>", return_tensors="pt").input_ids
    with torch.no_grad():
        wanted = model.eval()(input_ids=inputs).logits
    assert ttlora("merge", tmp_path / "adapter", "--output", tmp_path / "model").status == 0
    assert AutoTokenizer.from_pretrained(tmp_path / "model")("the film <|user|> was <|assistant|>").input_ids == [
        *inputs[0].tolist()
    ]
    with torch.no_grad():
        found = AutoModelForCausalLM.from_pretrained(tmp_path / "model").eval()(input_ids=inputs).logits
    assert found.shape[-1] == len(tokenizer)
    assert (found - wanted).abs().max() <= 1e-5 * wanted.abs().max()


def test_how_images_become_inputs(tmp_path, ttlora):
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 48}
    ViTForImageClassification(ViTConfig(**sizes, image_size=16, patch_size=4)).save_pretrained(tmp_path / "base")
    (tmp_path / "base" / "preprocessor_config.json").write_text('{"size": 16}', "utf-8")
    (tmp_path / "base" / "processor_config.json").write_text('{"of": "the base"}', "utf-8")
    model = ViTForImageClassification.from_pretrained(tmp_path / "base")
    get_peft_model(model, TTLoraConfig(init_weights=False)).save_pretrained(tmp_path / "adapter")
    (tmp_path / "adapter" / "processor_config.json").write_text('{"of": "the adapter"}', "utf-8")
    outcome = ttlora("merge", tmp_path / "adapter", "--output", tmp_path / "model")
    assert outcome.status == 0
    assert "comes without a tokenizer" in outcome.err
    assert json.loads((tmp_path / "model" / "preprocessor_config.json").read_text()) == {"size": 16}
    assert json.loads((tmp_path / "model" / "processor_config.json").read_text()) == {"of": "the adapter"}


def test_a_run_keeps_its_labels_and_the_number_format_of_its_base(bert, tmp_path, ttlora):
    """A base of float16 is trained in bfloat16, and merged into what it was."""
    shutil.copytree(bert, tmp_path / "base")
    change(tmp_path / "base" / "config.json", dtype="float16")
    weights = {key: tensor.half() for key, tensor in load_file(bert / "model.safetensors").items()}
    save_file(weights, tmp_path / "base" / "model.safetensors", {"format": "pt"})
    names = {0: "dull", 1: "lively"}
    rows = [{"text": row["sentence"], "verdict": names[row["label"]]} for row in sentiment_rows(8, seed=1)]
    file = write_jsonl(tmp_path / "rows.jsonl", rows)
    data = ("--train", file, "--validation", file, "--text-column", "text", "--label-column", "verdict")
    run = ("--epochs", 1, "--threads", 1, "--output", tmp_path / "run")
    assert ttlora("train", "--model", tmp_path / "base", "--task", "file", *data, *run).status == 0
    outcome = ttlora("merge", tmp_path / "run", "--output", tmp_path / "model", "--json")
    assert json.loads(outcome.out)["dtype"] == "float16"
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "model")
    assert model.dtype == torch.float16
    assert model.config.id2label == names
    word = "bert.embeddings.word_embeddings.weight"
    assert torch.equal(model.get_parameter(word), weights[word.removeprefix("bert.")])


def refused(ttlora: Callable[..., Any], tmp_path: Path, adapter: Path, *flags: object) -> str:
    """What is said, once it is one line of status 2 that has left nothing behind."""
    before = sorted(tmp_path.iterdir())
    outcome = ttlora("merge", adapter, "--output", tmp_path / "model", *flags)
    assert_one_line(outcome)
    assert sorted(tmp_path.iterdir()) == before
    message: str = outcome.err
    return message


@pytest.mark.parametrize("method", ["bitsandbytes", "gptq", "awq", "hqq", "torchao", "fp8", "mxfp4", None])
def test_a_quantised_base(method, adapter, base, tmp_path, ttlora):
    change(base / "config.json", quantization_config={"quant_method": method, "load_in_4bit": True})
    message = refused(ttlora, tmp_path, adapter, "--model", base)
    assert f"model {base} is stored quantised{f' by {method}' if method else ''}, and an update" in message
    assert "give the full-precision model that it was made of as --model" in message


def test_a_quantised_base_of_a_run(finished, bert, tmp_path, ttlora):
    shutil.copytree(bert, tmp_path / "base")
    change(tmp_path / "base" / "config.json", quantization_config={"quant_method": "bitsandbytes"})
    assert "stored quantised by bitsandbytes" in refused(ttlora, tmp_path, finished, "--model", tmp_path / "base")


@pytest.mark.parametrize("model_type", ["llama", "wizard"])
def test_code_that_comes_with_a_base_does_not_run(model_type, adapter, base, tmp_path, ttlora):
    names = {"AutoConfig": "code.Config", "AutoModelForCausalLM": "code.Model", "AutoTokenizer": ["code.Tokens", None]}
    change(base / "config.json", auto_map=names, model_type=model_type)
    change(base / "tokenizer_config.json", auto_map=names)
    (base / "code.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nConfig = Model = Tokens = dict\n", "utf-8")
    if model_type == "wizard":
        message = refused(ttlora, tmp_path, adapter, "--model", base)
        assert "it comes with code of its own, which ttlora does not run" in message
    else:  # transformers knows the model itself
        assert ttlora("merge", adapter, "--output", tmp_path / "model", "--model", base).status == 0
    assert not (tmp_path / "ran").exists()


def test_the_adapter_folder_as_its_base(adapter, base, tmp_path, ttlora):
    assert "holds no config.json" in refused(ttlora, tmp_path, adapter, "--model", adapter)
    for file in adapter.iterdir():
        shutil.copyfile(file, base / file.name)
    assert "holds an adapter, too" in refused(ttlora, tmp_path, adapter, "--model", base)


def test_a_model_that_contains_the_adapter(saved, tmp_path, ttlora):
    assert ttlora("merge", saved, "--output", tmp_path / "once").status == 0
    assert f"{saved} is merged into {tmp_path / 'once'} already" in refused(
        ttlora, tmp_path, saved, "--model", tmp_path / "once"
    )


def test_another_adapter_on_a_merged_model(saved, tmp_path, ttlora):
    assert ttlora("merge", saved, "--output", tmp_path / "once").status == 0
    torch.manual_seed(1)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "once")
    get_peft_model(model, TTLoraConfig(task_type="CAUSAL_LM", init_weights=False)).save_pretrained(tmp_path / "second")
    assert ttlora("merge", tmp_path / "second", "--output", tmp_path / "twice").status == 0
    for folder in (saved, tmp_path / "second"):
        assert "already" in refused(ttlora, tmp_path, folder, "--model", tmp_path / "twice")


def test_no_name_for_the_base(adapter, tmp_path, ttlora):
    assert "--model is empty" in refused(ttlora, tmp_path, adapter, "--model", "")
    change(adapter / "adapter_config.json", base_model_name_or_path=None)
    assert "does not name its base model" in refused(ttlora, tmp_path, adapter)


def test_the_revision_of_the_base(adapter, tmp_path, ttlora, monkeypatch):
    """Of a base on the hub, the one that the adapter names; of one that is given, its own."""
    asked = []

    def load_base_of(adapter, name, fit, **options):
        from ttlora.errors import UserError

        asked.append((name, options))
        raise UserError("no")

    monkeypatch.setattr("ttlora.finetune.merge.load_base_of", load_base_of)
    change(adapter / "adapter_config.json", base_model_name_or_path="some/model", revision="v2")
    refused(ttlora, tmp_path, adapter)
    refused(ttlora, tmp_path, adapter, "--model", "another/model")
    assert [(name, options["revision"]) for name, options in asked] == [("some/model", "v2"), ("another/model", None)]


class Runs:
    """Runs a command where it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


def test_a_pickle_that_runs_code(adapter, base, tmp_path, ttlora):
    weights = load_file(base / "model.safetensors")
    (base / "model.safetensors").unlink()
    torch.save({**weights, "more": Runs(tmp_path / "ran")}, base / "pytorch_model.bin")
    assert "pickle of more than tensors" in refused(ttlora, tmp_path, adapter, "--model", base)
    torch.save(weights, base / "pytorch_model.bin")
    assert ttlora("merge", adapter, "--output", tmp_path / "model", "--model", base).status == 0


def test_a_base_without_its_weights(adapter, base, tmp_path, ttlora):
    (base / "model.safetensors").unlink()
    assert f"model {base} cannot be loaded: Error no file" in refused(ttlora, tmp_path, adapter, "--model", base)


def test_a_base_in_several_files(adapter, llama, tmp_path, ttlora):
    torch.manual_seed(0)
    AutoModelForCausalLM.from_pretrained(llama).save_pretrained(tmp_path / "base", max_shard_size="10KB")
    files = sorted((tmp_path / "base").glob("*.safetensors"))
    assert len(files) > 1
    outcome = ttlora("merge", adapter, "--output", tmp_path / "model", "--model", tmp_path / "base")
    assert outcome.status == 0
    assert outcome.err.startswith(f"model {tmp_path / 'base'} comes without a tokenizer")
    plain = AutoModelForCausalLM.from_pretrained(llama, dtype=torch.float32)
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype=torch.float32)
    with torch.no_grad():
        wanted = PeftModel.from_pretrained(plain, adapter).eval()(input_ids=TOKENS).logits
        found = merged.eval()(input_ids=TOKENS).logits
    assert (found - wanted).abs().max() <= 0.05 * wanted.abs().max()
    shutil.rmtree(tmp_path / "model")
    files[1].unlink()
    assert files[1].name in refused(ttlora, tmp_path, adapter, "--model", tmp_path / "base")


@pytest.mark.parametrize(
    ("file", "content", "part"),
    [
        ("tokenizer.json", "{", "the tokenizer in"),
        ("generation_config.json", "[]", "generation_config.json is damaged"),
        ("chat_template.jinja", b"\xff\xfe", "chat_template.jinja cannot be read"),
    ],
)
def test_damaged_files_beside_the_adapter(file, content, part, adapter, tmp_path, ttlora):
    (adapter / file).write_bytes(content if isinstance(content, bytes) else content.encode())
    assert part in refused(ttlora, tmp_path, adapter)


def test_a_tokenizer_with_more_tokens_than_the_adapter_has_rows(adapter, tmp_path, ttlora):
    tokenizer = make_tokenizer()
    tokenizer.add_tokens(["<|user|>"])
    tokenizer.save_pretrained(adapter)
    message = refused(ttlora, tmp_path, adapter)
    assert f"has {len(tokenizer)} tokens and the model embeddings for {len(tokenizer) - 1}" in message
    assert "save_embedding_layers=True" in message


@pytest.mark.parametrize("values", [{"auto_mapping": {"base_model_class": "AutoTokenizer"}, "task_type": None}])
def test_a_class_that_is_no_model(values, adapter, llama, tmp_path, ttlora):
    """The base's own class is the next that is asked."""
    change(adapter / "adapter_config.json", **values)
    outcome = ttlora("merge", adapter, "--output", tmp_path / "model", "--json")
    assert json.loads(outcome.out)["class"] == "LlamaForCausalLM"
