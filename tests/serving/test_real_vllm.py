"""The plugin in the real vLLM (`make serving`): its server answers with TT-LoRA folders as they are."""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, LlamaForCausalLM

from tests.conftest import llama_config, make_tokenizer
from ttlora import TTLoraConfig
from ttlora.serving.cache import LoraCache

pytestmark = pytest.mark.serving

PROMPT = [2, 5, 6, 7, 8]
COUNT, KEPT = 50, 10


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama whose heads are as wide as vLLM's kernels for CPUs want them."""
    folder = tmp_path_factory.mktemp("model")
    torch.manual_seed(0)
    config = llama_config(
        hidden_size=128,
        num_attention_heads=2,
        num_key_value_heads=1,
        intermediate_size=192,
        max_position_embeddings=64,
        pad_token_id=0,
        initializer_range=0.2,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer = make_tokenizer()
    tokenizer.eos_token = "[SEP]"
    tokenizer.save_pretrained(folder)
    return folder


def save(model: Path, folder: Path, seed: int) -> None:
    torch.manual_seed(seed)
    config = TTLoraConfig(task_type="CAUSAL_LM", init_weights=False, alpha=2.0)
    get_peft_model(AutoModelForCausalLM.from_pretrained(model), config).save_pretrained(folder)


def written(model: Path, adapter: Path | None = None) -> str:
    """What transformers and PEFT write after the prompt."""
    base: Any = AutoModelForCausalLM.from_pretrained(model)
    base = base if adapter is None else PeftModel.from_pretrained(base, adapter)
    ids = base.generate(torch.tensor([PROMPT]), max_new_tokens=10, do_sample=False, pad_token_id=0)
    return str(make_tokenizer().decode(ids[0, len(PROMPT) :], skip_special_tokens=True))


class Server:
    """vLLM's server for OpenAI's interface, with the plugin."""

    def __init__(self, model: Path, adapters: Path, cache: Path, most_bytes: int, log: Path) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.model, self.log = model, log
        variables = {
            "TTLORA_ADAPTERS": adapters,
            "TTLORA_CACHE": cache,
            "TTLORA_CACHE_SIZE": most_bytes,
            "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "true",
            "VLLM_CPU_KVCACHE_SPACE": 1,
            "VLLM_NO_USAGE_STATS": 1,
            "HF_HUB_OFFLINE": 1,
        }
        sizes = {"max-lora-rank": 8, "max-loras": 2, "max-cpu-loras": 2, "max-model-len": 64, "port": self.port}
        flags = [
            "--enable-lora",
            "--enforce-eager",
            "--dtype=float32",
            *(f"--{name}={of}" for name, of in sizes.items()),
        ]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(model), *flags],
            env=os.environ | {name: str(value) for name, value in variables.items()},
            stdout=log.open("w"),
            stderr=subprocess.STDOUT,
        )
        deadline = time.monotonic() + 400
        while not self._is_up():
            assert self.process.poll() is None, log.read_text()[-3000:]
            assert time.monotonic() < deadline, "vLLM did not start within 400 s"
            time.sleep(1)

    def _is_up(self) -> bool:
        try:
            return bool(urllib.request.urlopen(f"http://127.0.0.1:{self.port}/health", timeout=2).status == 200)
        except OSError:
            return False

    def post(self, path: str, **content: Any) -> tuple[int, str]:
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}{path}", json.dumps(content).encode(), {"Content-Type": "application/json"}
        )
        try:
            with urllib.request.urlopen(request, timeout=120) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()

    def writes(self, name: str | None = None) -> str:
        """The text after the prompt, by an adapter or by the base model."""
        status, answer = self.post(
            "/v1/completions", model=name or str(self.model), prompt=PROMPT, max_tokens=10, temperature=0
        )
        assert status == 200, answer
        # words are joined by spaces, the first of them to the prompt
        return str(json.loads(answer)["choices"][0]["text"]).strip()


@pytest.fixture(scope="module")
def adapters(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("adapters")
    for number in range(COUNT):
        save(model, home / str(number), number)
    shutil.copytree(home / "0", home / "damaged")
    (home / "damaged" / "adapter_model.safetensors").write_bytes(b"x")
    return home


@pytest.fixture(scope="module")
def server(model: Path, adapters: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("server")
    one = sum(file.stat().st_size for file in LoraCache(folder / "one", 10**9).expanded(adapters / "0").iterdir())
    server = Server(model, adapters, folder / "cache", int((KEPT + 0.5) * one), folder / "log")
    yield server
    server.process.terminate()
    server.process.wait(60)


def test_adapters_and_base_at_once(server: Server, model: Path, adapters: Path) -> None:
    expected = [written(model), written(model, adapters / "0"), written(model, adapters / "1")]
    assert len(set(expected)) == 3
    assert [server.writes(), server.writes("0"), server.writes("1")] == expected
    # the base model again, with adapters in memory
    assert server.writes() == expected[0]


def test_fifty_over_a_cache_of_ten(server: Server, model: Path, adapters: Path) -> None:
    expected = [written(model, adapters / str(number)) for number in range(COUNT)]
    assert len(set(expected)) > COUNT / 2
    assert [server.writes(str(number)) for number in range(COUNT)] == expected
    # both vLLM and the cache have dropped these, and vLLM asks for no name twice
    assert [server.writes(str(number)) for number in range(5)] == expected[:5]


def test_one_that_comes_while_the_server_runs(server: Server, model: Path, adapters: Path) -> None:
    assert server.post("/v1/completions", model="late", prompt=PROMPT)[0] == 404
    save(model, adapters / "late", COUNT)
    assert server.writes("late") == written(model, adapters / "late")


def test_one_that_changes(server: Server, model: Path, adapters: Path) -> None:
    """vLLM keeps what it has loaded until it is told to let go."""
    save(model, adapters / "changing", 60)
    before = server.writes("changing")
    save(model, adapters / "changing", 61)
    assert server.post("/v1/unload_lora_adapter", lora_name="changing")[0] == 200
    after = server.writes("changing")
    assert after == written(model, adapters / "changing") != before


def test_what_is_declined(server: Server, adapters: Path) -> None:
    outwards = f"../{adapters.name}/../outside"
    (adapters.parent / "outside").mkdir()
    for name in ("damaged", outwards, "nobody"):
        assert server.post("/v1/completions", model=name, prompt=PROMPT)[0] == 404
    log = server.log.read_text()
    assert "ttlora does not serve 'damaged': " in log
    assert f"ttlora does not serve '{outwards}': the name leads out of" in log
    assert "Traceback" not in log
