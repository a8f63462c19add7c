"""Small models with random weights, their tokenizer, and rows that can be learned."""

import gc
import json
import os
import random
import sys
from pathlib import Path
from typing import Any

os.environ.update(
    HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false", TRANSFORMERS_VERBOSITY="error", HF_HUB_DISABLE_PROGRESS_BARS="1"
)

import jaxtyping
import pytest
import torch
from hypothesis import HealthCheck, settings
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import BertConfig, BertModel, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

# The shapes in annotations are checked at every call. Configs and shapes of trains check their values themselves, and
# wrong types are what their tests give them.
SHAPED = (
    *(f"tensor_train.{name}" for name in ("difference", "linear", "start", "train", "update")),
    *(f"tuners.tt_lora.{name}" for name in ("conv", "embedding", "layer", "linear", "together")),
    *(
        "tuners.loretta_rep.layer",
        "tuners.loretta_rep.update",
        "tuners.bottleneck.layer",
        "tuners.bottleneck.projection",
        "tuners.shared.layer",
        "tuners.shared.update",
        "tuners.meta_tt.update",
        "tuners.lorta.update",
    ),
)
jaxtyping.install_import_hook([f"ttlora.{name}" for name in SHAPED], "beartype.beartype")

# how long an example takes says something about the machine alone
settings.register_profile("ttlora", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("ttlora")

GOOD = ["fine", "lovely", "great", "bright", "warm"]
BAD = ["dull", "awful", "poor", "bleak", "cold"]
PLAIN = ["the", "film", "was", "a", "story", "about", "house", "and", "its", "people"]
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]


def command(*arguments: object) -> list[str]:
    """The installed command, for a process of its own."""
    return [str(Path(sys.executable).with_name("ttlora")), *map(str, arguments)]


def write_jsonl(path: Path, rows: list[dict]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return path


def sentiment_rows(count: int, seed: int) -> list[dict]:
    """Sentences whose label is told by one word."""
    chance = random.Random(seed)
    rows = []
    for number in range(count):
        label = number % 2
        words = chance.sample(PLAIN, chance.randint(2, 6))
        words.insert(chance.randint(0, len(words)), chance.choice(GOOD if label else BAD))
        rows.append({"sentence": " ".join(words), "label": label, "idx": number})
    return rows


def make_tokenizer() -> PreTrainedTokenizerFast:
    words = [*SPECIAL, *PLAIN, *GOOD, *BAD]
    tokenizer = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="[UNK]", pad_token="[PAD]", cls_token="[CLS]", sep_token="[SEP]"
    )


@pytest.fixture(scope="session", autouse=True)
def _libraries_are_not_garbage() -> None:
    """Trainer collects garbage after every run, and would look at every object of all libraries each time."""
    gc.collect()
    gc.freeze()


@pytest.fixture
def unchecked_shapes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take the checks of shapes away: torch.compile cannot trace them."""
    for module in [module for name, module in sys.modules.items() if name.startswith("ttlora.")]:
        classes = [item for item in vars(module).values() if isinstance(item, type)]
        for owner in (module, *(item for item in classes if item.__module__.startswith("ttlora."))):
            for name, value in list(vars(owner).items()):
                if (plain := _unchecked(value)) is not value:
                    monkeypatch.setattr(owner, name, plain)


def _unchecked(value: Any) -> Any:
    if isinstance(value, staticmethod | classmethod):
        plain = _unchecked(value.__func__)
        return value if plain is value.__func__ else type(value)(plain)
    if isinstance(value, property):
        plain = _unchecked(value.fget)
        return value if plain is value.fget else value.getter(plain)
    checks = getattr(value, "__code__", None)
    return value.__wrapped__ if checks and checks.co_filename == jaxtyping._decorator.__file__ else value


@pytest.fixture(scope="session")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny pretrained BERT (without a classification head) and its tokenizer."""
    folder = tmp_path_factory.mktemp("models") / "bert"
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len([*SPECIAL, *PLAIN, *GOOD, *BAD]),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=48,
        max_position_embeddings=40,
        initializer_range=0.2,
    )
    BertModel(config).save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return folder


def llama_config(**sizes: Any) -> LlamaConfig:
    """A Llama of two layers that knows the words of `make_tokenizer`."""
    words = len([*SPECIAL, *PLAIN, *GOOD, *BAD])
    return LlamaConfig(vocab_size=words, num_hidden_layers=2, bos_token_id=2, eos_token_id=3, **sizes)


@pytest.fixture(scope="session")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny pretrained Llama in bfloat16, whose tokenizer has no padding token."""
    folder = tmp_path_factory.mktemp("models") / "llama"
    torch.manual_seed(0)
    config = llama_config(
        hidden_size=32,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=48,
        max_position_embeddings=40,
        pad_token_id=None,
    )
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    tokenizer = make_tokenizer()
    tokenizer.pad_token = None
    tokenizer.eos_token = "[SEP]"
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def llama32(llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The causal model in float32."""
    folder = tmp_path_factory.mktemp("llama32")
    LlamaForCausalLM.from_pretrained(llama, dtype=torch.float32).save_pretrained(folder)
    for file in ("tokenizer.json", "tokenizer_config.json"):
        (folder / file).write_bytes((llama / file).read_bytes())
    return folder


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder with sst2: 48 training and 24 validation rows."""
    folder = tmp_path_factory.mktemp("data")
    write_jsonl(folder / "sst2" / "train.jsonl", sentiment_rows(48, seed=1))
    write_jsonl(folder / "sst2" / "validation.jsonl", sentiment_rows(24, seed=2))
    return folder
