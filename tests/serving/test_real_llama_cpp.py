"""llama.cpp itself (`make serving`): with an exported adapter it writes what transformers and PEFT write."""

import os
import subprocess
import sys
from importlib import import_module
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel, get_peft_model
from tokenizers import Tokenizer, decoders, models
from transformers import AutoModelForCausalLM, LlamaForCausalLM, PreTrainedTokenizerFast

import ttlora
from tests.conftest import llama_config

pytestmark = [
    pytest.mark.serving,
    pytest.mark.skipif(find_spec("llama_cpp") is None, reason="llama-cpp-python is not installed: run make serving"),
]

PROMPT = list(range(10, 20))
COUNT = 30
QUERY_AND_KEY = ["q_proj", "k_proj"]


def make_tokenizer() -> PreTrainedTokenizerFast:
    """Bytes and words, in the form in which llama.cpp reads Llama's vocabularies."""
    letters = [f"<0x{byte:02X}>" for byte in range(1, 128)]
    words = ["<unk>", "<s>", "</s>", *letters, *(f"▁word{n}" for n in range(200))]
    tokenizer = Tokenizer(models.BPE({word: n for n, word in enumerate(words)}, [], byte_fallback=True))
    parts = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence(parts)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
    )


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama with fewer keys than queries, whose rows are whole blocks of q8_0."""
    folder = tmp_path_factory.mktemp("model")
    torch.manual_seed(0)
    config = llama_config(
        hidden_size=128,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=192,
        max_position_embeddings=256,
        initializer_range=0.2,
    )
    config.update({"vocab_size": len(make_tokenizer()), "bos_token_id": 1, "eos_token_id": 2})
    LlamaForCausalLM(config).save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def bases(model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The model as llama.cpp's files, by number format."""
    script = Path(os.environ["LLAMA_CPP"]) / "convert_hf_to_gguf.py"
    files = {name: tmp_path_factory.mktemp("bases") / f"{name}.gguf" for name in ("f32", "q8_0")}
    for name, file in files.items():
        subprocess.run([sys.executable, script, model, "--outfile", file, "--outtype", name], check=True)
    return files


@pytest.fixture(scope="module", params=[None, QUERY_AND_KEY], ids=["default", "query and key"])
def adapter(request: Any, model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A TT-LoRA adapter of the default targets, or of those whose rows llama.cpp puts in another order."""
    folder: Path = tmp_path_factory.mktemp("adapter")
    torch.manual_seed(1)
    config = ttlora.TTLoraConfig(
        task_type="CAUSAL_LM", r=3, alpha=4.0, init_weights=False, target_modules=request.param
    )
    get_peft_model(AutoModelForCausalLM.from_pretrained(model), config).save_pretrained(folder)
    return folder


def ours(model: Path, adapter: Path | None = None) -> tuple[list[int], torch.Tensor]:
    """The tokens after the prompt by transformers and PEFT, and the logits of the prompt."""
    network: Any = AutoModelForCausalLM.from_pretrained(model)
    network = network if adapter is None else PeftModel.from_pretrained(network, adapter)
    prompt = torch.tensor([PROMPT])
    ids = network.generate(prompt, max_new_tokens=COUNT, do_sample=False)[0, len(PROMPT) :].tolist()
    with torch.no_grad():
        return ids, network(prompt).logits[0]


def theirs(file: Path, lora: Path | None = None) -> tuple[list[int], str, torch.Tensor]:
    """The same by llama.cpp, and the tokens as text."""
    options: dict[str, Any] = {"lora_path": str(lora)} if lora else {}
    # keys and values in float32, too, which llama.cpp keeps in float16 unless it is told
    precision = dict.fromkeys(("type_k", "type_v"), import_module("llama_cpp").GGML_TYPE_F32)
    network = import_module("llama_cpp").Llama(
        str(file), n_ctx=256, n_threads=1, n_threads_batch=1, logits_all=True, verbose=False, **precision, **options
    )
    ids = list(islice(network.generate(PROMPT, temp=0.0), COUNT))
    return ids, network.detokenize(ids).decode(), torch.tensor(network.scores[: len(PROMPT)])


def distance(found: torch.Tensor, wanted: torch.Tensor) -> float:
    return float((found - wanted).norm() / wanted.norm())


def test_text_in_float32(model: Path, bases: dict[str, Path], adapter: Path, tmp_path: Path) -> None:
    ttlora.export(adapter, tmp_path / "a.gguf", format="gguf", base=model)
    wanted, logits = ours(model, adapter)
    ids, text, found = theirs(bases["f32"], tmp_path / "a.gguf")
    assert ids == wanted
    assert text == make_tokenizer().decode(wanted)
    assert distance(found, logits) < 1e-5
    before, _ = ours(model)
    assert theirs(bases["f32"])[0] == before != wanted


def test_a_quantised_base(model: Path, bases: dict[str, Path], adapter: Path, tmp_path: Path) -> None:
    """What the base loses by quantisation is all that is lost: of tokens with close logits, another one may come."""
    ttlora.export(adapter, tmp_path / "a.gguf", format="gguf", base=model)
    (_, before), (_, wanted) = ours(model), ours(model, adapter)
    lost = distance(theirs(bases["q8_0"])[2], before)
    found = theirs(bases["q8_0"], tmp_path / "a.gguf")[2]
    assert 0.01 < lost < 0.1
    assert distance(found, wanted) < 1.5 * lost
    assert distance(found, before) > 0.5


def test_an_adapter_in_16_bits(model: Path, bases: dict[str, Path], adapter: Path, tmp_path: Path) -> None:
    _, wanted = ours(model, adapter)
    for dtype, tolerance in (("bfloat16", 1e-2), ("float16", 2e-3)):
        ttlora.export(adapter, tmp_path / f"{dtype}.gguf", dtype=dtype, format="gguf", base=model)
        assert distance(theirs(bases["f32"], tmp_path / f"{dtype}.gguf")[2], wanted) < tolerance
